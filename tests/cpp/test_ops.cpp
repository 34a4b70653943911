// What the public C++ functions add to the operator, through LibTorch: the settings' structs, C++
// exceptions, a group's fields. What the operator makes of any input is tested from Python.
#include <gkd/gkd.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>

namespace {

using Options = gkd::LossOptions;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// T^2 KL(p||q) in float64: what coupled weights of 1 must give for every group.
at::Tensor hinton(const at::Tensor& student, const at::Tensor& teacher, double t) {
  const auto log_p = (teacher / t).log_softmax(1), log_q = (student / t).log_softmax(1);
  return (log_p.exp() * (log_p - log_q)).sum(1) * t * t;
}

TEST(Loss, CoupledUnitWeightsAreHintonsKd) {
  torch::manual_seed(3);
  const auto student = torch::randn({4, 37}, torch::kDouble) * 4;
  const auto teacher = torch::randn({4, 37}, torch::kDouble) * 4;
  Options options;
  options.coupled = true;
  options.primary_weight = options.binary_weight = options.secondary_weight = 1;
  options.reduction = "none";
  for (std::int64_t size : {0, 1, 5, 36, 37, 100}) {
    options.group_size = size;
    const auto loss = gkd::loss(student, teacher, std::nullopt, options);
    EXPECT_TRUE(torch::allclose(loss, hinton(student, teacher, 4.0), 1e-12, 0)) << size;
  }
}

TEST(TrainingLoss, IsCrossEntropyAndLoss) {
  torch::manual_seed(4);
  const auto x = torch::rand({5, 70}, torch::kDouble).requires_grad_();
  const auto u = torch::rand({5, 70}, torch::kDouble);
  const auto target = torch::randint(70, {5}, torch::kLong);
  gkd::TrainingOptions training;
  training.scale = 16;
  training.margin = 0.1;
  training.margins = torch::linspace(0, 0.3, 5, torch::kDouble);
  training.distillation_weight = 3;
  training.distillation_factor = torch::full({}, 0.5, torch::kDouble);
  Options options;
  options.group_size = 9;
  options.check_target = true;
  const auto value = gkd::training_loss(x, u, target, training, options);
  const auto onehot = torch::one_hot(target, 70).to(torch::kDouble);
  const auto lowered = x - (*training.margins + 0.1).unsqueeze(1) * onehot;
  const auto entropy = torch::nn::functional::cross_entropy(16 * lowered, target);
  const auto distillation = gkd::loss(16 * x, 16 * u, target, options);
  EXPECT_TRUE(torch::allclose(value.cross_entropy, entropy, 1e-12, 0));
  EXPECT_TRUE(torch::allclose(value.distillation, distillation, 1e-12, 0));
  EXPECT_FALSE(value.cross_entropy.requires_grad() || value.distillation.requires_grad());
  const auto found = torch::autograd::grad({value.total}, {x})[0];
  const auto wanted = torch::autograd::grad({entropy + 1.5 * distillation}, {x})[0];
  EXPECT_TRUE(torch::allclose(found, wanted, 1e-12, 1e-13));
}

TEST(SparseLoss, IsTheLossOfTheWholeTeacher) {
  torch::manual_seed(5);
  const auto x = torch::randn({5, 70}, torch::kDouble).requires_grad_();
  const auto u = torch::randn({5, 70}, torch::kDouble) * 4;
  const auto target = torch::randint(70, {5}, torch::kLong);
  Options choice;
  choice.group_size = 9;
  const gkd::TeacherGroup group = gkd::teacher_group(u, target, choice);
  EXPECT_EQ(group.indptr.size(0), 6);
  EXPECT_EQ(group.indptr[5].item<std::int64_t>(), group.indices.size(0));
  EXPECT_EQ(gkd::teacher_group(u, target, choice, torch::kHalf).logits.scalar_type(), torch::kHalf);
  EXPECT_THROW(gkd::teacher_group(u, target, choice, std::nullopt, 8), c10::ValueError);
  EXPECT_THROW(gkd::teacher_group(u.to(torch::kMeta)), c10::NotImplementedError);
  const auto loss = gkd::sparse_loss(x, group, target), dense = gkd::loss(x, u, target, choice);
  EXPECT_TRUE(torch::allclose(loss, dense, 1e-12, 0));
  EXPECT_TRUE(torch::allclose(torch::autograd::grad({loss}, {x})[0],
                              torch::autograd::grad({dense}, {x})[0], 1e-10, 1e-14));
  EXPECT_THROW(gkd::sparse_loss(x, group, target, choice), c10::ValueError);
  gkd::TrainingOptions training;
  training.scale = 16;
  training.margin = 0.1;
  const auto value = gkd::training_sparse_loss(x / 16, group, target, training);
  const auto wanted = gkd::training_loss(x / 16, u / 16, target, training, choice);
  EXPECT_TRUE(torch::allclose(value.total, wanted.total, 1e-12, 0));
  EXPECT_TRUE(torch::allclose(value.cross_entropy, wanted.cross_entropy, 1e-12, 0));
}

TEST(Group, SizeAndMaskAgree) {
  torch::manual_seed(5);
  const auto student = torch::randn({6, 100}), teacher = torch::randn({6, 100}) * 8;
  const auto g = gkd::group(student, teacher, std::nullopt, {}, /*return_mask=*/true);
  EXPECT_TRUE(torch::equal(g.size, g.mask.sum(1)));
  EXPECT_TRUE((g.mass_teacher >= 0.93f - 1e-6f).all().item<bool>());
}

template <class Error>
void expect_thrown(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    FAIL() << "accepted; expected: " << text;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what_without_backtrace()).find(text), std::string::npos) << e.what();
  }
}

TEST(Errors, EveryExceptionHasItsType) {
  const auto x = torch::randn({2, 3});
  expect_thrown<c10::ValueError>([&] { gkd::loss(x, x.slice(0, 1)); },
                                 "gkd::loss: teacher_logits must be [2, 3] as student_logits");
  expect_thrown<c10::TypeError>([&] { gkd::loss(x.to(at::kInt), x); },
                                "gkd::loss: expected floating point student_logits, got Int");
  expect_thrown<c10::NotImplementedError>(
      [&] { gkd::loss(x.to_sparse(), x); },
      "Could not run 'gkd::_forward' with arguments from the 'SparseCPU' backend");
  expect_thrown<c10::Error>([&] { gkd::loss(x, x.to(at::kMeta)); },
                            "gkd::loss: all tensors must be on one device, got ");
  Options options;
  options.check_target = true;
  const auto target = torch::tensor({1, 3});
  expect_thrown<c10::IndexError>([&] { gkd::loss(x, x, target, options); },
                                 "gkd::loss: target 3 is out of bounds for 3 classes (row 1)");
  options.ignore_index = 3;
  EXPECT_TRUE(gkd::loss(x, x, target, options).isfinite().item<bool>());
}

TEST(Errors, EveryOptionReachesTheOperator) {
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
      {"method must be auto, sort or select, got fast", [](Options& o) { o.method = "fast"; }},
      {"reduction must be none, mean or sum, got max", [](Options& o) { o.reduction = "max"; }},
  };
  const auto x = torch::randn({2, 3});
  for (const auto& [text, set] : bad) {
    Options options;
    set(options);
    expect_thrown<c10::ValueError>([&] { gkd::loss(x, x, std::nullopt, options); },
                                   "gkd::loss: " + text);
  }
}

TEST(ShardedLoss, ChecksItsSliceBeforeAnyRankIsAsked) {
  const auto x = torch::randn({2, 3});
  gkd::Shard shard;
  shard.class_start = 5;
  shard.num_classes = 7;
  shard.group_name = "nobody";
  expect_thrown<c10::ValueError>(
      [&] { gkd::sharded_loss(x, x, std::nullopt, shard); },
      "gkd::sharded_loss: class_start must leave the shard's 3 classes within the 7 of "
      "num_classes, got 5");
  shard.class_start = 4;
  expect_thrown<c10::Error>([&] { gkd::sharded_loss(x, x, std::nullopt, shard); }, "nobody");
}

TEST(ShardedSparseLoss, ChecksItsSliceBeforeAnyRankIsAsked) {
  const auto x = torch::randn({2, 3});
  const gkd::TeacherGroup group = gkd::teacher_group(x);
  gkd::Shard shard;
  shard.class_start = 5;
  shard.num_classes = 7;
  shard.group_name = "nobody";
  expect_thrown<c10::ValueError>(
      [&] { gkd::sharded_sparse_loss(x, group, std::nullopt, shard); },
      "gkd::sharded_sparse_loss: class_start must leave the shard's 3 classes within the 7 of "
      "num_classes, got 5");
  shard.class_start = 4;
  const auto target = torch::zeros({2}, torch::kLong);
  expect_thrown<c10::Error>([&] { gkd::sharded_sparse_loss(x, group, target, shard); }, "nobody");
  expect_thrown<c10::Error>([&] { gkd::sharded_training_sparse_loss(x, group, target, shard); },
                            "nobody");
}

}  // namespace
