// The maths headers alone: no torch, no GPU. Judged against long double sums.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "math/cut.h"
#include "math/dtype.h"
#include "math/loss.h"

namespace {

constexpr std::uint32_t kInfinityBits = 0x7f800000u;

std::uint32_t key(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return gkd::ordered_key(bits, kInfinityBits);
}

TEST(OrderedKey, KeepsTheOrderOfFloats) {
  const float inf = std::numeric_limits<float>::infinity();
  const float ascending[] = {-inf, -3e38f, -1.f, -1e-45f, 0.f, 1e-45f, 1.f, 3e38f, inf};
  for (int i = 0; i + 1 < 9; ++i) EXPECT_LT(key(ascending[i]), key(ascending[i + 1])) << i;
}

TEST(OrderedKey, SettlesZerosAndNaN) {
  EXPECT_EQ(key(-0.f), key(0.f));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_GT(key(nan), key(std::numeric_limits<float>::infinity()));
  EXPECT_EQ(key(nan), key(-nan));
}

TEST(OrderedKey, RoundTrips) {
  for (float x : {-5.5f, 0.f, 1e-40f, 7.25f}) {
    std::uint32_t bits = gkd::key_to_bits(key(x));
    float back;
    std::memcpy(&back, &bits, 4);
    EXPECT_EQ(back, x);
  }
}

template <class T, class Bits>
Bits bits_of_infinity() {
  const T infinity = std::numeric_limits<T>::infinity();
  Bits bits;
  static_assert(sizeof(Bits) == sizeof(T));
  std::memcpy(&bits, &infinity, sizeof(T));
  return bits;
}

TEST(Dtypes, HaveTheirSizesAndInfinities) {
  using gkd::Dtype;
  EXPECT_EQ(gkd::infinity_bits(Dtype::kHalf), 0x7c00u);
  EXPECT_EQ(gkd::infinity_bits(Dtype::kBFloat16), 0x7f80u);
  EXPECT_EQ(gkd::infinity_bits(Dtype::kFloat), (bits_of_infinity<float, std::uint32_t>()));
  EXPECT_EQ(gkd::infinity_bits(Dtype::kDouble), (bits_of_infinity<double, std::uint64_t>()));
  EXPECT_EQ(gkd::element_size(Dtype::kBFloat16), 2);
  EXPECT_EQ(gkd::element_size(Dtype::kDouble), 8);
}

TEST(ConstantCut, NeedsNoLogits) {
  const double inf = std::numeric_limits<double>::infinity();
  const auto cut = [](double threshold, std::int64_t size) {
    return gkd::constant_cut<double>({threshold, size}, 10);
  };
  EXPECT_EQ(cut(0.93, 0), inf);
  EXPECT_EQ(cut(0.93, 10), -inf);
  EXPECT_EQ(cut(1.0, 11), -inf);
  EXPECT_EQ(cut(1.0, -1), std::numeric_limits<double>::lowest());
  EXPECT_FALSE(cut(1.0, 9));
  EXPECT_FALSE(cut(0.93, -1));
}

TEST(MassScale, NeverOverflowsSixtyThreeBits) {
  for (std::int64_t classes : {1LL, 2LL, 3LL, 85742LL, 2059906LL, 1LL << 31}) {
    EXPECT_LE(gkd::mass_scale(classes) * static_cast<double>(classes), std::exp2(62.0)) << classes;
  }
}

TEST(MassReached, AtTheThresholdExactly) {
  EXPECT_TRUE(gkd::mass_reached(50, 100, 0.5));
  EXPECT_FALSE(gkd::mass_reached(49, 100, 0.5));
}

TEST(Elementary, ExpIsWithinAFewUlp) {
  for (int step = 0; step < 12774; ++step) {
    const float x = -87.f + 0.0137f * static_cast<float>(step);
    const double truth = std::exp(static_cast<double>(x));
    EXPECT_NEAR(gkd::exp_of(x) / truth, 1.0, 2.5e-7) << x;
  }
  EXPECT_EQ(gkd::exp_of(-std::numeric_limits<float>::infinity()), 0.f);
  EXPECT_TRUE(std::isnan(gkd::exp_of(std::numeric_limits<float>::quiet_NaN())));
}

// Merging must not depend on the shifts nor on how the row was cut.
TEST(Moments, MergeEqualsOneSweep) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const double inv_t = 0.25;
  std::vector<double> s(1000), u(1000);
  for (int j = 0; j < 1000; ++j) {
    u[j] = 6 * normal(random);
    s[j] = u[j] + 1e-4 * normal(random);
  }
  auto summary = [&](int begin, int end) {
    gkd::GroupMoments<double> m;
    m.shift = {u[begin], s[begin]};
    for (int j = begin; j < end; ++j) {
      m.push(gkd::class_terms(s[j], u[j], {u[begin], s[begin]}, inv_t));
    }
    return m;
  };
  gkd::GroupMoments<double> whole = summary(0, 1000), merged;
  for (int begin : {300, 0, 750})
    merged.merge(summary(begin, begin == 0 ? 300 : begin == 300 ? 750 : 1000), inv_t);
  ASSERT_EQ(merged.count, 1000);
  whole.change_shift(merged.shift, inv_t);
  EXPECT_NEAR(merged.sum_teacher / whole.sum_teacher, 1, 1e-13);
  EXPECT_NEAR(merged.sum_student / whole.sum_student, 1, 1e-13);
  EXPECT_NEAR(merged.sum_diff / whole.sum_diff, 1, 1e-9);
}

// A group may hold classes that only one side gives a probability: nothing becomes NaN on the way.
TEST(Moments, MergesSummariesWithoutAFiniteLogit) {
  const double inf = std::numeric_limits<double>::infinity();
  using Moments = gkd::GroupMoments<double>;
  auto of = [&](double s, double u) {
    Moments m;
    m.shift = {u, s};
    m.push(gkd::class_terms(s, u, {gkd::finite_or_zero(u), gkd::finite_or_zero(s)}, 1.0));
    return m;
  };
  const std::vector<Moments> parts = {of(2, -inf), of(-inf, 3), of(-inf, -inf), of(1, 1)};
  std::vector<int> order = {0, 1, 2, 3};
  do {
    Moments sum;
    for (int k : order) sum.merge(parts[k], 1.0);
    sum.change_shift({3, 2}, 1.0);
    EXPECT_EQ(sum.count, 4);
    EXPECT_NEAR(sum.sum_teacher, 1 + std::exp(-2.0), 1e-14);
    EXPECT_NEAR(sum.sum_student, 1 + std::exp(-1.0), 1e-14);
    EXPECT_NEAR(sum.sum_diff, sum.sum_student - sum.sum_teacher, 1e-14);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Phi, KeepsDigitsNearZero) {
  for (double d : {1e-9, -1e-5, 1e-3, 0.3, -1.0, 1.0}) {
    const long double x = d;
    const long double truth = std::fabs(d) < 1e-2
                                  ? x * x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5)))
                                  : std::expm1(-x) + x;
    EXPECT_NEAR(gkd::expm1_and_phi(d).phi / static_cast<double>(truth), 1, 1e-14) << d;
    EXPECT_NEAR(gkd::expm1_and_phi(static_cast<float>(d)).phi / static_cast<double>(truth), 1, 4e-7)
        << d;
  }
}

// A row of two groups with all three terms, against the formulas written out.
TEST(RowMaths, LossAndGradientAreTheFormulas) {
  using Real = long double;
  constexpr int kClasses = 12, kInside = 5;
  std::mt19937 random(9);
  std::normal_distribution<double> normal;
  double s[kClasses], u[kClasses], noise[kClasses];
  for (int j = 0; j < kClasses; ++j) {
    u[j] = 5 * normal(random);
    noise[j] = 3 * normal(random);
  }
  // Apart and nearly agreeing logits, with a shift of the group's own and with the row's.
  for (int kind = 0; kind < 8; ++kind) {
    const bool coupled = kind & 1, near = kind & 2, common_shift = kind & 4;
    SCOPED_TRACE(testing::Message() << "kind " << kind);
    for (int j = 0; j < kClasses; ++j) s[j] = near ? u[j] + 0.02 * noise[j] : noise[j];
    const gkd::Weights w{/*temperature=*/2.5, /*primary=*/3.0, /*binary=*/0.7, /*secondary=*/1.3,
                         coupled};
    gkd::GroupMoments<double> moments[2];
    Real mass_p[2] = {0, 0}, mass_q[2] = {0, 0}, all_p = 0, all_q = 0;
    for (int j = 0; j < kClasses; ++j) {
      const int g = j < kInside ? 0 : 1, first = g == 0 || common_shift ? 0 : kInside;
      moments[g].shift = {u[first], s[first]};
      moments[g].push(gkd::class_terms(s[j], u[j], moments[g].shift, 1 / w.temperature));
      mass_p[g] += std::exp(Real(u[j]) / w.temperature);
      mass_q[g] += std::exp(Real(s[j]) / w.temperature);
    }
    for (int g = 0; g < 2; ++g) {
      all_p += mass_p[g];
      all_q += mass_q[g];
    }
    gkd::GroupCoef<double> coef[2];
    const gkd::RowSummary row = gkd::row_coefficients(moments, w, coef);
    const double mass[4] = {row.p, row.p_rest, row.q, row.q_rest};
    for (int i = 0; i < 4; ++i) {
      const Real expected = i < 2 ? mass_p[i] / all_p : mass_q[i - 2] / all_q;
      EXPECT_NEAR(mass[i] / static_cast<double>(expected), 1, 1e-14) << i;
    }
    const double weight[2] = {w.primary, w.secondary};
    double kl[2] = {0, 0};
    Real loss = 0;
    for (int g = 0; g < 2; ++g) {
      const Real p = mass_p[g] / all_p, q = mass_q[g] / all_q;
      loss += w.binary * p * std::log(p / q);
    }
    for (int j = 0; j < kClasses; ++j) {
      const int g = j < kInside ? 0 : 1;
      const Real p = std::exp(Real(u[j]) / w.temperature) / mass_p[g];
      const Real q = std::exp(Real(s[j]) / w.temperature) / mass_q[g];
      const Real factor = weight[g] * (coupled ? mass_p[g] / all_p : 1);
      loss += factor * p * std::log(p / q);
      const Real moved = mass_q[g] / all_q - mass_p[g] / all_p;
      const Real gradient = w.temperature * (w.binary * moved * q + factor * (q - p));
      const auto terms = gkd::class_kl(s[j], u[j], coef[g], 1 / w.temperature);
      kl[g] += terms.kl;
      EXPECT_NEAR(gkd::class_grad(terms, coef[g]), static_cast<double>(gradient), 1e-13) << j;
    }
    loss *= w.temperature * w.temperature;
    EXPECT_NEAR(gkd::row_loss(row, w, kl[0], kl[1]) / static_cast<double>(loss), 1, 1e-13);
  }
}

TEST(RowMaths, KeepsDigitsOfASmallMass) {
  gkd::GroupMoments<double> moments[2];
  for (int g = 0; g < 2; ++g) {
    moments[g].shift = {0, 0};
    moments[g].sum_teacher = moments[g].sum_student = g == 0 ? 3 : 6e-20;
    moments[g].count = 2;
  }
  gkd::GroupCoef<double> coef[2];
  const gkd::RowSummary row = gkd::row_coefficients(moments, gkd::Weights{}, coef);
  EXPECT_NEAR(row.p_rest / 2e-20, 1, 1e-15);
  EXPECT_NEAR(row.q_rest / 2e-20, 1, 1e-15);
}

TEST(RowMaths, AWeightOfZeroMeetsNoInfinity) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(gkd::row_loss(gkd::RowSummary{}, gkd::Weights{}, inf, inf), 0);
}

// u = logit(P) and v = u + w: a side may be as small as exp(-40), and the gap 1e-7.
TEST(Binary, KeepsDigitsOfASmallSideAndOfASmallGap) {
  for (double u : {-40.0, -3.0, 0.5, 40.0}) {
    for (double w : {1e-7, -1e-3, 0.5, 3.0}) {
      SCOPED_TRACE(testing::Message() << "u " << u << ", w " << w);
      const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
      gkd::RowSummary row;
      row.p = sigmoid(u), row.p_rest = sigmoid(-u);
      row.q = sigmoid(u + w), row.q_rest = sigmoid(-u - w);
      gkd::binary_term(
          w, [&] { return gkd::log_of_masses(w, row.p_rest); }, [&] { return u; },
          [&] { return u + w; }, &row, gkd::InTurn{});
      // From the larger side, as log1p keeps what the smaller one adds.
      const double sign = u < 0 ? -1 : 1;
      const long double small = 1 / (1 + std::exp(std::fabs(static_cast<long double>(u))));
      const long double large = 1 - small, gap = sign * w;
      const long double log_large = std::log1p(small * std::expm1(-gap));
      const long double binary = large * log_large + small * (gap + log_large);
      const long double moved = sign * large * std::expm1(-log_large);
      EXPECT_NEAR(row.binary / static_cast<double>(binary), 1, 1e-9);
      EXPECT_NEAR(row.q_minus_p / static_cast<double>(moved), 1, 1e-12);
    }
  }
}

}  // namespace
