// The row kernels of every instruction set that this processor runs, against each other.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "row_case.h"

namespace {

using namespace gkd::test;

TEST(Row, InstructionSetsAgree) {
  for (int kind = 0; kind < 4; ++kind) {
    for (int classes : {1, 15, 17, 513, 40000}) {  // around a vector, past a tile, past a segment
      const Case c = make(kind, classes);
      for (std::int64_t size : {-1, 0, 7}) {
        gkd::Selection selection;
        selection.group_size = size;
        std::vector<float> first, other;
        const RowResult expected = run(supported_kernels()[0], c, selection, &first);
        for (const Kernels& set : supported_kernels()) {
          SCOPED_TRACE(std::string(set.name) + " kind " + std::to_string(kind) + " C " +
                       std::to_string(classes));
          const RowResult got = run(set, c, selection, &other);
          // By mass, exp differs in its last bit between sets: a cut may move by one class.
          if (size >= 0 || classes < 40000) {
            EXPECT_EQ(got.cut, expected.cut);
            EXPECT_EQ(got.size, expected.size);
          }
          EXPECT_NEAR(got.size, expected.size, 2);
          EXPECT_NEAR(got.loss, expected.loss, 1e-4 * std::abs(expected.loss) + 1e-12);
          float largest = 0, error = 0;
          for (int j = 0; j < classes; ++j) {
            largest = std::max(largest, std::abs(first[j]));
            if (got.size == expected.size) error = std::max(error, std::abs(first[j] - other[j]));
          }
          EXPECT_LE(error, 4e-6f * largest + 1e-12f);
        }
      }
    }
  }
}

TEST(Row, SelectEqualsSort) {
  for (const Kernels& set : supported_kernels()) {
    for (int kind = 0; kind < 4; ++kind) {
      for (int classes : {1, 33, 2000, 40000}) {
        const Case c = make(kind, classes);
        for (double threshold : {0.2, 0.93, 0.9999}) {
          gkd::Selection selection;
          selection.threshold = threshold;
          const RowResult selected = run(set, c, selection);
          selection.sort = true;
          EXPECT_EQ(selected.cut, run(set, c, selection).cut) << set.name << kind << classes;
        }
      }
    }
  }
}

float to_float(std::uint16_t bits, Dtype dtype) {
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  const int mantissa_bits = dtype == Dtype::kHalf ? 10 : 7, top = dtype == Dtype::kHalf ? 31 : 255;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  if (exponent == top) {
    return mantissa ? std::numeric_limits<float>::quiet_NaN()
                    : sign * std::numeric_limits<float>::infinity();
  }
  const int whole = exponent ? mantissa | 1 << mantissa_bits : mantissa;
  return sign *
         std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - (top / 2) - mantissa_bits);
}

/// Finite logits of up to 4 in magnitude, or what `special` says, at one class.
std::vector<std::uint16_t> half_row(int classes, Dtype dtype, unsigned seed, int special) {
  std::mt19937 random(seed);
  const std::uint16_t four = dtype == Dtype::kHalf ? 0x4400 : 0x4080;
  std::vector<std::uint16_t> row(classes);
  for (auto& x : row) x = static_cast<std::uint16_t>(random() % four | (random() & 1) << 15);
  if (special) row[random() % classes] = static_cast<std::uint16_t>(special);
  return row;
}

TEST(Row, SixteenBitsEqualTheirFloats) {
  for (Dtype dtype : {Dtype::kHalf, Dtype::kBFloat16}) {
    const int infinity = dtype == Dtype::kHalf ? 0x7c00 : 0x7f80;
    // One class is -inf, a NaN of either sign, +inf; as large a NaN as there is.
    for (int special : {0, infinity | 0x8000, infinity + 1, infinity + 0x8001, infinity, 0xffff}) {
      for (int classes : {1, 31, 33, 512, 1000, 40000}) {
        for (bool by_student : {false, true}) {
          for (const Kernels& set : supported_kernels()) {
            SCOPED_TRACE(std::string(set.name) + " dtype " +
                         std::to_string(static_cast<int>(dtype)) + " special " +
                         std::to_string(special) + " C " + std::to_string(classes));
            const auto s = half_row(classes, dtype, 1, by_student ? special : 0);
            const auto u = half_row(classes, dtype, 2, by_student ? 0 : special);
            Case c;
            for (int j = 0; j < classes; ++j) {
              c.student.push_back(to_float(s[j], dtype));
              c.teacher.push_back(to_float(u[j], dtype));
            }
            std::vector<float> gradient;
            gkd::Selection selection;
            selection.by_student = by_student;
            const RowResult expected = run(set, c, selection, &gradient);
            std::vector<std::uint16_t> half_gradient(classes);
            gkd::cpu::RowTask task;
            task.student = {s.data(), 1, dtype};
            task.teacher = {u.data(), 1, dtype};
            task.gradient = {half_gradient.data(), dtype};
            task.classes = classes;
            task.selection = selection;
            const RowResult got = run(set, task);
            const bool invalid = special != 0 && (classes == 1 || special != (infinity | 0x8000));
            ASSERT_EQ(std::isnan(got.loss), invalid);
            ASSERT_EQ(std::isnan(expected.loss), invalid);
            for (int j = 0; j < classes; ++j) {
              const float g = to_float(half_gradient[j], dtype);
              ASSERT_EQ(std::isnan(g), invalid);
              if (!invalid) ASSERT_NEAR(g, gradient[j], std::abs(gradient[j]) / 256 + 1e-7f);
            }
            if (invalid) continue;
            EXPECT_EQ(got.loss, expected.loss);
            EXPECT_EQ(got.cut, expected.cut);
            EXPECT_EQ(got.size, expected.size);
          }
        }
      }
    }
  }
}

TEST(Row, ShowsANaNInAWholeGroup) {
  for (const Kernels& set : supported_kernels()) {
    Case c = make(0, 100);
    c.teacher[50] = std::numeric_limits<float>::quiet_NaN();
    gkd::Selection selection;
    selection.group_size = 100;
    EXPECT_TRUE(std::isnan(run(set, c, selection).loss)) << set.name;
  }
}

TEST(Row, StudentAndTeacherMayShareMemory) {
  const Case c = make(0, 2000);
  std::vector<float> every_second;
  for (int j = 0; j < 1000; ++j) every_second.push_back(c.teacher[2 * j]);
  gkd::cpu::RowTask task;
  task.student = {c.teacher.data(), 2, Dtype::kFloat};
  task.teacher = {c.teacher.data(), 1, Dtype::kFloat};
  task.classes = 1000;
  gkd::cpu::RowTask apart = task;
  apart.student = {every_second.data(), 1, Dtype::kFloat};
  for (const Kernels& set : supported_kernels()) {
    EXPECT_EQ(run(set, task).loss, run(set, apart).loss) << set.name;
  }
}

TEST(Row, ExactCutServesLogitsOfAnyMagnitude) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> exponent(-35, 35);
  Case c = make(0, 40000);
  for (float& x : c.teacher) x = std::copysign(std::pow(10.0f, exponent(random)), x);
  for (const Kernels& set : supported_kernels()) {
    for (std::int64_t size : {1, 1000, 20000, 39999}) {
      gkd::Selection selection;
      selection.group_size = size;
      const RowResult selected = run(set, c, selection);
      selection.sort = true;
      EXPECT_EQ(selected.cut, run(set, c, selection).cut) << set.name << " " << size;
      EXPECT_EQ(selected.size, size);
    }
  }
}

TEST(Scale, RoundsSixteenBitsOnceAndAlike) {
  std::vector<std::uint16_t> bits(65536), first(65536), other(65536);
  for (int k = 0; k < 65536; ++k) bits[k] = static_cast<std::uint16_t>(k);
  for (Dtype dtype : {Dtype::kHalf, Dtype::kBFloat16}) {
    for (double factor : {1.0, 0.37, 1e-4, 3e4}) {
      supported_kernels()[0].scale(bits.data(), first.data(), dtype, 65536, factor);
      for (const Kernels& set : supported_kernels()) {
        set.scale(bits.data(), other.data(), dtype, 65536, factor);
        const int exponent = dtype == Dtype::kHalf ? 0x7c00 : 0x7f80;
        for (int k = 0; k < 65536; ++k) {
          if ((k & 0x7fff) > exponent) continue;  // a NaN's payload is nobody's business
          ASSERT_EQ(first[k], other[k]) << set.name << " " << k << " by " << factor;
          if (factor == 1.0) ASSERT_EQ(first[k], k);
        }
      }
    }
  }
}

}  // namespace
