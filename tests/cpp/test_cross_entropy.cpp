// The maths of cross-entropy, judged against long double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "math/cross_entropy.h"
#include "math/loss.h"

namespace {

TEST(CrossEntropy, PartsMergeToTheWhole) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const double inf = std::numeric_limits<double>::infinity(), scale = 3.0;
  std::vector<double> logits(60);
  for (double& x : logits) x = 20 * normal(random);
  logits[5] = -inf;
  for (double target : {-200.0, 0.0, 40.0, 200.0, -inf}) {
    gkd::OtherSum row;
    long double sum = 0;
    for (int part = 0; part < 6; ++part) {  // the last parts are empty and of -inf alone
      gkd::OtherSum of_part;
      for (int j = 20 * part; j < std::min(60, 20 * part + 20); ++j) {
        of_part.merge({logits[j], logits[j] > -inf ? 1.0 : 0.0}, scale);
      }
      row.merge(of_part, scale);
    }
    const double high = *std::max_element(logits.begin(), logits.end());
    EXPECT_EQ(row.high, high);
    for (double x : logits) sum += std::exp(scale * static_cast<long double>(x - high));
    EXPECT_NEAR(row.sum / static_cast<double>(sum), 1, 1e-13);
    const gkd::CrossEntropy found = gkd::cross_entropy(row, target, scale);
    if (target == -inf) {
      EXPECT_EQ(found.loss, inf);
      EXPECT_EQ(found.others, 1);
      continue;
    }
    const long double gap = scale * static_cast<long double>(high - target) + std::log(sum);
    const long double loss = gap > 0 ? gap + std::log1p(std::exp(-gap)) : std::log1p(std::exp(gap));
    EXPECT_NEAR(found.loss / static_cast<double>(loss), 1, 1e-13) << target;
    // The classes' probabilities and the target's add up to 1.
    EXPECT_NEAR(found.factor * row.sum, found.others, 1e-15);
  }
}

TEST(CrossEntropy, AloneAndOff) {
  const gkd::CrossEntropy alone = gkd::cross_entropy({}, 3.0, 64.0);
  EXPECT_EQ(alone.loss, 0);
  EXPECT_EQ(alone.others, 0);
  EXPECT_EQ(alone.factor, 0);
  const double inf = std::numeric_limits<double>::infinity();
  gkd::Weights w;
  EXPECT_EQ(gkd::total_loss(w, inf, 2.0), 2);  // a weight of 0 is never 0 * inf
  w.cross_entropy = 2;
  w.distillation = 0;
  EXPECT_EQ(gkd::total_loss(w, 1.5, inf), 3);
}

}  // namespace
