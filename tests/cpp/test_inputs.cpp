// What the C++ functions add to the operator: C++ exceptions, the settings' struct, grad mode. What
// the operator makes of each bad or extreme input is tested from Python (loss/test_edge_values.py,
// loss/test_invalid_arguments.py). Tensors are made and judged on the CPU, since a device may lack
// torch's own kernels.
#include <gkd/gkd.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>

namespace gkd::test {
namespace {

using at::Tensor;
using Options = gkd::LossOptions;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class Device : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(8);
    student = torch::randn({4, 10}).to(GetParam());
    teacher = (torch::randn({4, 10}) * 4).to(GetParam());
  }

  Tensor zeros(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const {
    return torch::zeros(shape, dtype).to(GetParam());
  }

  Tensor student, teacher;
};

template <class Error>
void expect_thrown(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    FAIL() << "accepted; expected: " << text;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what_without_backtrace()).find(text), std::string::npos) << e.what();
  }
}

TEST_P(Device, EveryExceptionHasItsType) {
  expect_thrown<c10::ValueError>(
      [&] {
        gkd::loss(student, zeros({1, 10}));
      },
      "gkd::loss: teacher_logits must be [4, 10] as student_logits, got [1, 10]");
  expect_thrown<c10::TypeError>(
      [&] {
        gkd::loss(zeros({4, 10}, at::kInt), teacher);
      },
      "gkd::loss: expected floating point student_logits, got Int");
  Options options;
  options.check_target = true;
  const Tensor target = torch::tensor({0, 1, -100, 17}).to(GetParam());
  if (GetParam() != "meta") {
    expect_thrown<c10::IndexError>([&] { gkd::loss(student, teacher, target, options); },
                                   "gkd::loss: target 17 is out of bounds for 10 classes (row 3)");
  }
  const std::string there = GetParam() == "meta" ? "cpu" : "meta";
  expect_thrown<c10::Error>(
      [&] {
        gkd::loss(student, torch::zeros({4, 10}).to(there));
      },
      "gkd::loss: all tensors must be on one device, got ");
}

TEST(Errors, SparseTensorsAreNotImplemented) {
  const Tensor dense = torch::ones({2, 3});
  expect_thrown<c10::NotImplementedError>(
      [&] { gkd::loss(dense.to_sparse(), dense); },
      "Could not run 'gkd::_forward' with arguments from the 'SparseCPU' backend");
}

TEST_P(Device, EveryOptionReachesTheOperator) {
  const std::pair<std::string, std::function<void(Options&)>> bad[] = {
      {"temperature must be finite and > 0, got 0", [](Options& o) { o.temperature = 0; }},
      {"threshold must be in (0, 1], got nan", [](Options& o) { o.threshold = kNan; }},
      {"group_size must be >= 0, got -1", [](Options& o) { o.group_size = -1; }},
      {"group_temperature must be finite and > 0, got 0",
       [](Options& o) { o.group_temperature = 0; }},
      {"primary_weight must be finite, got nan", [](Options& o) { o.primary_weight = kNan; }},
      {"binary_weight must be finite, got nan", [](Options& o) { o.binary_weight = kNan; }},
      {"secondary_weight must be finite, got nan", [](Options& o) { o.secondary_weight = kNan; }},
      {"rank_by must be teacher or student, got loss", [](Options& o) { o.rank_by = "loss"; }},
      {"reduction must be none, mean or sum, got max", [](Options& o) { o.reduction = "max"; }},
  };
  for (const auto& [text, set] : bad) {
    Options options;
    set(options);
    expect_thrown<c10::ValueError>([&] { gkd::loss(student, teacher, std::nullopt, options); },
                                   "gkd::loss: " + text);
  }
}

TEST_P(Device, TheTeacherTakesNoGradient) {
  expect_thrown<c10::ValueError>(
      [&] { gkd::loss(student, teacher.requires_grad_()); },
      "gkd::loss: teacher_logits must not require grad; pass teacher_logits.detach()");
}

TEST_P(Device, BackwardTwice) {
  const Tensor leaf = student.requires_grad_();
  const Tensor loss = gkd::loss(leaf, teacher);
  const Tensor one = torch::ones({}).to(GetParam());
  const Tensor first = torch::autograd::grad({loss}, {leaf}, {one}, std::nullopt, true)[0];
  expect_thrown<c10::NotImplementedError>(
      [&] {
        torch::autograd::grad({first}, {leaf}, {zeros({4, 10})}, true);
      },
      "gkd::loss is not differentiable twice");
  loss.backward(one);
  expect_thrown<c10::Error>([&] { loss.backward(one); },
                            "backward through the graph a second time");
}

TEST_P(Device, NoGradKeepsTheBits) {
  Options options;
  options.reduction = "none";
  const Tensor rows = gkd::loss(student.requires_grad_(), teacher, std::nullopt, options);
  EXPECT_TRUE(rows.requires_grad());
  const torch::NoGradGuard guard;
  const Tensor value = gkd::loss(student, teacher, std::nullopt, options);
  EXPECT_FALSE(value.requires_grad());
  EXPECT_EQ(value.sizes(), at::IntArrayRef({4}));
  if (GetParam() != "meta") EXPECT_TRUE(torch::equal(value.cpu(), rows.detach().cpu()));
}

TEST_P(Device, NoRows) {
  EXPECT_EQ(gkd::loss(zeros({0, 5}), zeros({0, 5})).dim(), 0);
  const auto group = gkd::group(zeros({0, 5}), zeros({0, 5}), std::nullopt, {}, true);
  EXPECT_EQ(group.mask.sizes(), at::IntArrayRef({0, 5}));
}

INSTANTIATE_TEST_SUITE_P(Inputs, Device, testing::Values("cpu", "meta", "cuda"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace gkd::test
