// Inputs that must be refused, through the C++ functions: the numbers and messages of tests/python,
// on every device.
#include <tuple>
#include <vector>

#include "input_case.h"

namespace gkd::test {
namespace {

struct Refusal {
  int row;
  std::string what;
  Kind kind;
  std::string text;  ///< after "gkd::loss: "
  std::function<void(Call&)> spoil;
};

Refusal setting(int row, const std::string& what, const std::string& text,
                std::function<void(Options&)> set) {
  return {row, what, Kind::kValue, text, [set](Call& c) { set(c.options); }};
}

Refusal tensors(int row, const std::string& what, Kind kind, const std::string& text,
                std::function<void(Call&)> spoil) {
  return {row, what, kind, text, std::move(spoil)};
}

std::vector<Refusal> refusals() {
  const std::string temperature = "temperature must be finite and > 0, got ";
  const std::string range = "temperature must be in [1e-6, 1e6], got ";
  const std::string threshold = "threshold must be in (0, 1], got ";
  const auto of = [](at::ScalarType dtype) { return torch::zeros({4, 10}, dtype); };
  return {
      setting(27, "zero", temperature + "0", [](Options& o) { o.temperature = 0; }),
      setting(27, "negative", temperature + "-1", [](Options& o) { o.temperature = -1; }),
      setting(27, "nan", temperature + "nan", [](Options& o) { o.temperature = kNan; }),
      setting(27, "inf", temperature + "inf", [](Options& o) { o.temperature = kInf; }),
      setting(28, "cold", range + "1e-08", [](Options& o) { o.temperature = 1e-8; }),
      setting(28, "hot", range + "1e+08", [](Options& o) { o.temperature = 1e8; }),
      setting(29, "zero", threshold + "0", [](Options& o) { o.threshold = 0; }),
      setting(29, "negative", threshold + "-0.5", [](Options& o) { o.threshold = -0.5; }),
      setting(29, "large", threshold + "1.5", [](Options& o) { o.threshold = 1.5; }),
      setting(29, "nan", threshold + "nan", [](Options& o) { o.threshold = kNan; }),
      setting(32, "negative", "group_size must be >= 0, got -1",
              [](Options& o) { o.group_size = -1; }),
      setting(34, "both",
              "give one of threshold and group_size, got threshold 0.5 and group_size 2",
              [](Options& o) { o.threshold = 0.5, o.group_size = 2; }),
      setting(35, "primary", "primary_weight must be finite, got nan",
              [](Options& o) { o.primary_weight = kNan; }),
      setting(35, "binary", "binary_weight must be finite, got inf",
              [](Options& o) { o.binary_weight = kInf; }),
      setting(35, "secondary", "secondary_weight must be finite, got -inf",
              [](Options& o) { o.secondary_weight = -kInf; }),
      setting(44, "max", "reduction must be none, mean or sum, got max",
              [](Options& o) { o.reduction = "max"; }),
      tensors(2, "classes", Kind::kValue, "needs at least one class, got [4, 0]",
              [](Call& c) {
                c.student = c.teacher = torch::zeros({4, 0});
              }),
      tensors(5, "columns", Kind::kValue,
              "student [4, 10] and teacher [4, 9] must have the same shape",
              [](Call& c) {
                c.teacher = torch::zeros({4, 9});
              }),
      tensors(5, "broadcast", Kind::kValue,
              "student [4, 10] and teacher [1, 10] must have the same shape",
              [](Call& c) {
                c.teacher = torch::zeros({1, 10});
              }),
      tensors(6, "one", Kind::kValue, "expected 2-D [B, C] student, got 1-D",
              [](Call& c) { c.student = c.teacher = torch::zeros({10}); }),
      tensors(6, "three", Kind::kValue, "expected 2-D [B, C] teacher, got 3-D",
              [](Call& c) {
                c.teacher = torch::zeros({2, 3, 4});
              }),
      tensors(7, "int", Kind::kType, "expected floating point student, got Int",
              [=](Call& c) { c.student = of(at::kInt); }),
      tensors(7, "bool", Kind::kType, "expected floating point teacher, got Bool",
              [=](Call& c) { c.teacher = of(at::kBool); }),
      tensors(9, "complex", Kind::kType,
              "unsupported dtype of student: expected float16, bfloat16, float32 or float64, got "
              "ComplexFloat",
              [=](Call& c) { c.student = of(at::kComplexFloat); }),
      tensors(41, "float", Kind::kType, "target must be int64 or int32, got Float",
              [](Call& c) { c.target = torch::zeros({4}); }),
      tensors(41, "bool", Kind::kType, "target must be int64 or int32, got Bool",
              [](Call& c) { c.target = torch::zeros({4}, at::kBool); }),
      tensors(42, "column", Kind::kValue, "target must be [4], got [4, 1]",
              [](Call& c) {
                c.target = torch::zeros({4, 1}, at::kLong);
              }),
      tensors(42, "long", Kind::kValue, "target must be [4], got [5]",
              [](Call& c) { c.target = torch::zeros({5}, at::kLong); }),
      tensors(48, "grad", Kind::kValue, "teacher needs no gradient; pass teacher.detach()",
              [](Call& c) {
                c.teacher = torch::zeros({4, 10}).requires_grad_();
              }),
  };
}

class Refused : public testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(Refused, WithItsMessage) {
  const auto& [device, index] = GetParam();
  if (device == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  const Refusal refusal = refusals()[index];
  Call call;
  refusal.spoil(call);
  expect_refused(
      refusal.kind, [&] { call.loss(device); }, "gkd::loss: " + refusal.text);
}

std::string name_of(const testing::TestParamInfo<std::tuple<std::string, int>>& info) {
  const Refusal refusal = refusals()[std::get<1>(info.param)];
  return "Row" + std::to_string(refusal.row) + "_" + refusal.what + "_" + std::get<0>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Inputs, Refused,
                         testing::Combine(kDevices,
                                          testing::Range(0, static_cast<int>(refusals().size()))),
                         name_of);

TEST(Refusals, Row11DevicesDiffer) {
  const auto here = torch::zeros({2, 3}), there = here.to("meta");
  expect_refused(
      Kind::kAny, [&] { gkd::loss(here, there); },
      "gkd::loss: all tensors must be on one device, got cpu and meta");
  expect_refused(
      Kind::kAny, [&] { gkd::loss(here, here, torch::zeros({2}, at::kLong).to("meta")); },
      "gkd::loss: all tensors must be on one device, got cpu and meta");
}

TEST(Refusals, Row65Layouts) {
  const auto dense = torch::ones({2, 3});
  expect_refused(
      Kind::kNotImplemented, [&] { gkd::loss(dense.to_sparse(), dense); },
      "Could not run 'gkd::_forward' with arguments from the 'SparseCPU' backend");
}

}  // namespace
}  // namespace gkd::test
