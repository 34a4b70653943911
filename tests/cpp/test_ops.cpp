// The public C++ functions through LibTorch.
#include <gkd/gkd.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <thread>
#include <vector>

namespace {

// T^2 KL(p||q) in float64: what coupled weights of 1 must give for every group.
at::Tensor hinton(const at::Tensor& student, const at::Tensor& teacher, double t) {
  const auto log_p = (teacher / t).log_softmax(1), log_q = (student / t).log_softmax(1);
  return (log_p.exp() * (log_p - log_q)).sum(1) * t * t;
}

TEST(Loss, CoupledUnitWeightsAreHintonsKd) {
  torch::manual_seed(3);
  const auto student = torch::randn({4, 37}, torch::kDouble) * 4;
  const auto teacher = torch::randn({4, 37}, torch::kDouble) * 4;
  gkd::LossOptions options;
  options.coupled = true;
  options.primary_weight = options.binary_weight = options.secondary_weight = 1;
  options.reduction = "none";
  for (std::int64_t size : {0, 1, 5, 36, 37, 100}) {
    options.group_size = size;
    const auto loss = gkd::loss(student, teacher, std::nullopt, options);
    EXPECT_TRUE(torch::allclose(loss, hinton(student, teacher, 4.0), 1e-12, 0)) << size;
  }
}

TEST(Loss, GradientScalesWithGradOutput) {
  torch::manual_seed(4);
  auto student = torch::randn({3, 50}).requires_grad_();
  const auto teacher = torch::randn({3, 50});
  const auto loss = gkd::loss(student, teacher);
  loss.backward(torch::full({}, 2.5f), /*retain_graph=*/true);
  const auto once = student.grad().clone();
  EXPECT_GT(once.abs().max().item<float>(), 0);
  loss.backward(torch::full({}, 2.5f));
  EXPECT_TRUE(torch::equal(student.grad(), once * 2));
}

TEST(Group, SizeAndMaskAgree) {
  torch::manual_seed(5);
  const auto student = torch::randn({6, 100}), teacher = torch::randn({6, 100}) * 8;
  const auto g = gkd::group(student, teacher, std::nullopt, {}, /*return_mask=*/true);
  EXPECT_TRUE(torch::equal(g.size, g.mask.sum(1)));
  EXPECT_TRUE((g.mass_teacher >= 0.93f - 1e-6f).all().item<bool>());
}

// Rows that are taken apart by torch's threads, and (3 x 40,000) rows that its threads share.
TEST(Loss, ThreadsGiveTheSerialBits) {
  torch::manual_seed(6);
  struct Work {
    at::Tensor student, teacher, target;
    gkd::LossOptions options;
    // Value, gradient and group sizes.
    std::vector<at::Tensor> operator()() const {
      const auto leaf = student.detach().requires_grad_();
      const auto value = gkd::loss(leaf, teacher, target, options);
      value.backward(torch::full({}, 1.7, value.options()));
      return {value.detach(), leaf.grad(), gkd::group(student, teacher, target, options).size};
    }
  };
  const std::vector<at::ScalarType> dtypes = {torch::kFloat, torch::kDouble, torch::kHalf,
                                              torch::kBFloat16};
  std::vector<Work> works(8);
  std::vector<std::vector<at::Tensor>> expected;
  for (std::size_t k = 0; k < works.size(); ++k) {
    Work& work = works[k];
    const std::int64_t rows = k == 3 ? 3 : 5 + k, classes = k == 3 ? 40000 : 100 * k + 7;
    work.student = torch::randn({rows, classes}).to(dtypes[k % 4]);
    work.teacher = (torch::randn({rows, classes}) * 5).to(dtypes[k % 4]);
    work.target = torch::randint(classes, {rows}, torch::kLong);
    work.options.temperature = 1.0 + k;
    work.options.secondary_weight = 0.5 * k;
    work.options.rank_by = k % 2 ? "student" : "teacher";
    expected.push_back(work());
  }
  std::vector<int> wrong(works.size());
  std::vector<std::thread> threads;
  for (std::size_t k = 0; k < works.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int repeat = 0; repeat < 10; ++repeat) {
        const auto got = works[k]();
        for (std::size_t i = 0; i < got.size(); ++i)
          wrong[k] += !torch::equal(got[i], expected[k][i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t k = 0; k < works.size(); ++k) EXPECT_EQ(wrong[k], 0) << "thread " << k;
}

template <class Error, class Call>
void expect_error(Call call, const std::string& text) {
  try {
    call();
    FAIL() << "accepted; expected: " << text;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
  }
}

TEST(Errors, CheckTargetNamesValueAndRow) {
  const auto x = torch::randn({2, 3});
  gkd::LossOptions options;
  options.check_target = true;
  const auto target = torch::tensor({1, 3});
  expect_error<c10::IndexError>([&] { gkd::loss(x, x, target, options); },
                                "gkd::loss: target 3 is out of bounds for 3 classes (row 1)");
  options.ignore_index = 3;
  EXPECT_TRUE(gkd::loss(x, x, target, options).isfinite().item<bool>());
}

TEST(ShardedLoss, ChecksItsSliceBeforeAnyRankIsAsked) {
  const auto x = torch::randn({2, 3});
  gkd::Shard shard;
  shard.class_start = 5;
  shard.num_classes = 7;
  shard.group_name = "nobody";
  expect_error<c10::ValueError>(
      [&] { gkd::sharded_loss(x, x, std::nullopt, shard); },
      "gkd::sharded_loss: class_start must leave the shard's 3 classes within the 7 of "
      "num_classes, got 5");
  shard.class_start = 4;
  expect_error<c10::Error>([&] { gkd::sharded_loss(x, x, std::nullopt, shard); }, "nobody");
}

}  // namespace
