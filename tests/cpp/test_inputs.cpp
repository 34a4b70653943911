// Extreme inputs through the C++ functions, on every device, numbered as in tests/python. Tensors
// are made and judged on the CPU, since a device may lack torch's own kernels.
#include <utility>

#include "input_case.h"

namespace gkd::test {
namespace {

class Device : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  }
};

/// Loss rows and the gradient of their sum, on the CPU; on the meta device their shapes.
std::pair<Tensor, Tensor> run(const Call& call, const std::string& device) {
  Call own = call;
  own.options.reduction = "none";
  own.student = call.student.detach().to(device).requires_grad_();
  const Tensor rows = own.loss(device);
  EXPECT_EQ(rows.sizes(), at::IntArrayRef({call.student.size(0)}));
  rows.backward(torch::ones({call.student.size(0)}, call.student.options()).to(device));
  const Tensor gradient = own.student.grad();
  EXPECT_EQ(gradient.sizes(), call.student.sizes());
  if (device == "meta") return {torch::zeros(rows.sizes()), torch::zeros(gradient.sizes())};
  return {rows.detach().cpu(), gradient.cpu()};
}

bool bare(const Tensor& t) { return !t.any().item<bool>(); }
bool all_nan(const Tensor& t) { return t.isnan().all().item<bool>(); }

Call random_call(std::int64_t rows, std::int64_t classes) {
  torch::manual_seed(8);
  Call call;
  call.student = torch::randn({rows, classes});
  call.teacher = torch::randn({rows, classes}) * 4;
  return call;
}

TEST_P(Device, Row1And3NoRowsAndOneClass) {
  Call call = random_call(0, 5);
  run(call, GetParam());
  if (GetParam() != "meta") EXPECT_EQ(call.loss(GetParam()).cpu().item<float>(), 0);
  const auto [rows, gradient] = run(random_call(3, 1), GetParam());
  EXPECT_TRUE(bare(rows) && bare(gradient));
}

TEST_P(Device, Row13ExpandedRows) {
  Call call = random_call(3, 20), dense = call;
  call.student = call.student.slice(0, 0, 1).expand({3, 20});
  dense.student = call.student.contiguous();
  EXPECT_TRUE(torch::equal(call.loss("cpu"), dense.loss("cpu")));
  const auto got = run(call, GetParam()), expected = run(dense, GetParam());
  EXPECT_TRUE(torch::equal(got.first, expected.first));
  EXPECT_TRUE(torch::equal(got.second, expected.second));
}

TEST_P(Device, Row15And16And20SpoiltRowsStayAlone) {
  const Call clean = random_call(3, 40);
  const auto before = run(clean, GetParam());
  for (double value : {kNan, -kNan, kInf, -kInf}) {
    Call call = clean;
    call.teacher = clean.teacher.clone();
    if (value == -kInf) {
      call.teacher[1].fill_(value);
    } else {
      call.teacher[1][7] = value;
    }
    const auto [rows, gradient] = run(call, GetParam());
    if (GetParam() == "meta") continue;
    EXPECT_TRUE(all_nan(rows[1]) && all_nan(gradient[1])) << value;
    for (int row : {0, 2}) {
      EXPECT_TRUE(torch::equal(rows[row], before.first[row])) << value;
      EXPECT_TRUE(torch::equal(gradient[row], before.second[row])) << value;
    }
  }
}

TEST_P(Device, Row23StudentEqualToTeacher) {
  Call call = random_call(3, 999);
  call.student = call.teacher.clone();
  call.options.secondary_weight = 1;
  const auto [rows, gradient] = run(call, GetParam());
  EXPECT_TRUE(bare(rows) && bare(gradient));
}

TEST_P(Device, Row33AllClassesByAnySize) {
  const Call call = random_call(2, 20);
  Options options;
  for (std::int64_t size : {std::int64_t(20), std::int64_t(1) << 40}) {
    options.group_size = size;
    const auto group = gkd::group(call.student.to(GetParam()), call.teacher.to(GetParam()),
                                  std::nullopt, options, /*return_mask=*/true);
    EXPECT_EQ(group.mask.sizes(), call.student.sizes());
    if (GetParam() != "meta") EXPECT_TRUE(group.mask.cpu().all().item<bool>());
  }
}

TEST_P(Device, Row36WeightsOfZero) {
  Call call = random_call(2, 20);
  call.student[0][0] = -kInf;
  call.teacher[0][0] = 30;
  call.options.primary_weight = call.options.binary_weight = 0;
  const auto [rows, gradient] = run(call, GetParam());
  EXPECT_TRUE(bare(rows) && bare(gradient));
}

TEST_P(Device, Row37TargetOutOfBounds) {
  Call call = random_call(4, 5);
  call.target = torch::tensor({0, 1, -100, 7});
  const std::string text = "gkd::loss: target 7 is out of bounds for 5 classes (row 3)";
  if (GetParam() == "cpu") {
    expect_refused(
        Kind::kIndex, [&] { call.loss("cpu"); }, text);
  } else {
    const auto [rows, gradient] = run(call, GetParam());
    if (GetParam() == "meta") return;
    EXPECT_TRUE(all_nan(rows[3]) && all_nan(gradient[3]));
    EXPECT_FALSE(rows.slice(0, 0, 3).isnan().any().item<bool>());
  }
  call.options.check_target = true;
  expect_refused(
      Kind::kIndex, [&] { call.loss(GetParam()); }, text);
}

TEST_P(Device, Row38And40IgnoredRows) {
  Call call = random_call(3, 9);
  call.teacher[1].fill_(kNan);
  call.target = torch::tensor({5, -100, 0});
  const auto [rows, gradient] = run(call, GetParam());
  EXPECT_TRUE(bare(rows[1]) && bare(gradient[1]));
  if (GetParam() == "meta") return;
  EXPECT_TRUE(rows[0].item<float>() > 0 && !bare(gradient[2]));
  call.target = torch::full({3}, -100, at::kLong);
  EXPECT_EQ(call.loss(GetParam()).cpu().item<float>(), 0);
}

TEST_P(Device, Row49And50Backwards) {
  const Call call = random_call(2, 5);
  const Tensor leaf = call.student.to(GetParam()).requires_grad_();
  const Tensor loss = gkd::loss(leaf, call.teacher.to(GetParam()));
  const Tensor one = torch::ones({}).to(GetParam());
  const Tensor first = torch::autograd::grad({loss}, {leaf}, {one}, std::nullopt, true)[0];
  expect_refused(
      Kind::kNotImplemented,
      [&] { torch::autograd::grad({first}, {leaf}, {call.student.to(GetParam())}, true); },
      "gkd::loss is not differentiable twice");
  loss.backward(one);
  expect_refused(
      Kind::kAny, [&] { loss.backward(one); }, "backward through the graph a second time");
}

TEST_P(Device, Row54NoGradKeepsTheBits) {
  const Call call = random_call(3, 50);
  const auto rows = run(call, GetParam()).first;
  Call own = call;
  own.options.reduction = "none";
  const torch::NoGradGuard guard;
  const Tensor value = own.loss(GetParam());
  EXPECT_FALSE(value.requires_grad());
  if (GetParam() != "meta") EXPECT_TRUE(torch::equal(value.cpu(), rows));
}

TEST_P(Device, Row66ShapesAndDtypes) {
  for (auto dtype : {at::kHalf, at::kDouble}) {
    Call call = random_call(2, 6);
    call.student = call.student.to(dtype);
    const auto expected = dtype == at::kDouble ? at::kDouble : at::kFloat;
    EXPECT_EQ(call.loss(GetParam()).scalar_type(), expected);
    EXPECT_EQ(call.loss(GetParam()).device().str().substr(0, 3), GetParam().substr(0, 3));
  }
}

INSTANTIATE_TEST_SUITE_P(Inputs, Device, kDevices, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace gkd::test
