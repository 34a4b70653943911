// Calls with bad or extreme inputs, and what is expected of them, for the tests of both.
#pragma once

#include <gkd/gkd.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>
#include <string>

namespace gkd::test {

using at::Tensor;
using Options = gkd::LossOptions;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

/// What a call is made of; tensors on the CPU until it is made.
struct Call {
  Tensor student = torch::zeros({4, 10}), teacher = torch::zeros({4, 10});
  std::optional<Tensor> target;
  Options options;

  Tensor loss(const std::string& device) const {
    std::optional<Tensor> own;
    if (target) own = target->to(device);
    return gkd::loss(student.to(device), teacher.to(device), own, options);
  }
};

enum class Kind { kValue, kType, kIndex, kNotImplemented, kAny };

template <class Error>
void expect_thrown(const std::function<void()>& run, const std::string& text) {
  try {
    run();
    FAIL() << "accepted; expected: " << text;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what_without_backtrace()).find(text), std::string::npos) << e.what();
  }
}

inline void expect_refused(Kind kind, const std::function<void()>& run, const std::string& text) {
  switch (kind) {
    case Kind::kValue:
      return expect_thrown<c10::ValueError>(run, text);
    case Kind::kType:
      return expect_thrown<c10::TypeError>(run, text);
    case Kind::kIndex:
      return expect_thrown<c10::IndexError>(run, text);
    case Kind::kNotImplemented:
      return expect_thrown<c10::NotImplementedError>(run, text);
    case Kind::kAny:
      return expect_thrown<c10::Error>(run, text);
  }
}

inline const auto kDevices = testing::Values("cpu", "meta", "cuda");

}  // namespace gkd::test
