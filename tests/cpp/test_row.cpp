// The row kernels of every instruction set that this processor runs, against each other.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/row.h"

namespace {

using gkd::cpu::Kernels;
using gkd::cpu::RowResult;

struct Set {
  std::string name;
  Kernels kernels;
};

std::vector<Set> sets() {
  std::vector<Set> found = {{"DEFAULT", gkd::cpu::DEFAULT::kernels()}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    found.push_back({"AVX2", gkd::cpu::AVX2::kernels()});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back({"AVX512", gkd::cpu::AVX512::kernels()});
#endif
  return found;
}

struct Case {
  std::vector<float> student, teacher;
};

Case make(int kind, int classes) {
  std::mt19937 random(kind * 1000 + classes);
  std::normal_distribution<float> normal;
  Case c{std::vector<float>(classes), std::vector<float>(classes)};
  for (int j = 0; j < classes; ++j) {
    const float x = normal(random), y = normal(random);
    c.teacher[j] = kind == 0 ? x : kind == 1 ? 8 * x : std::round(2 * x);
    if (kind == 3 && j % 3) c.teacher[j] = -std::numeric_limits<float>::infinity();
    c.student[j] = y;
  }
  return c;
}

RowResult run(const Kernels& kernels, const Case& c, const gkd::cpu::Selection& how,
              std::vector<float>* gradient = nullptr) {
  gkd::cpu::RowTask task;
  task.student.data = c.student.data();
  task.teacher.data = c.teacher.data();
  task.classes = static_cast<std::int64_t>(c.student.size());
  task.how = how;
  if (gradient) {
    gradient->resize(c.student.size());
    task.gradient.data = gradient->data();
  }
  gkd::cpu::Scratch scratch;
  return kernels.single(
      task,
      [](std::int64_t n, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t k = n; k-- > 0;) body(k);  // any order serves
      },
      &scratch);
}

TEST(Row, InstructionSetsAgree) {
  for (int kind = 0; kind < 4; ++kind) {
    for (int classes : {1, 15, 17, 513, 40000}) {  // around a pack, past a block, past a segment
      const Case c = make(kind, classes);
      for (std::int64_t size : {-1, 0, 7}) {
        gkd::cpu::Selection how;
        how.group_size = size;
        std::vector<float> first, other;
        const RowResult expected = run(sets()[0].kernels, c, how, &first);
        for (const Set& set : sets()) {
          SCOPED_TRACE(set.name + " kind " + std::to_string(kind) + " C " +
                       std::to_string(classes));
          const RowResult got = run(set.kernels, c, how, &other);
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
  for (const Set& set : sets()) {
    for (int kind = 0; kind < 4; ++kind) {
      for (int classes : {1, 33, 2000, 40000}) {
        const Case c = make(kind, classes);
        for (double threshold : {0.2, 0.93, 0.9999}) {
          gkd::cpu::Selection how;
          how.threshold = threshold;
          const RowResult selected = run(set.kernels, c, how);
          how.sort = true;
          EXPECT_EQ(selected.cut, run(set.kernels, c, how).cut) << set.name << kind << classes;
        }
      }
    }
  }
}

TEST(Scale, RoundsSixteenBitsOnceAndAlike) {
  std::vector<std::uint16_t> all(65536), first(65536), other(65536);
  for (int k = 0; k < 65536; ++k) all[k] = static_cast<std::uint16_t>(k);
  for (auto dtype : {gkd::cpu::Dtype::kHalf, gkd::cpu::Dtype::kBFloat16}) {
    for (double by : {1.0, 0.37, 1e-4, 3e4}) {
      sets()[0].kernels.scale(all.data(), first.data(), dtype, 65536, by);
      for (const Set& set : sets()) {
        set.kernels.scale(all.data(), other.data(), dtype, 65536, by);
        const int exponent = dtype == gkd::cpu::Dtype::kHalf ? 0x7c00 : 0x7f80;
        for (int k = 0; k < 65536; ++k) {
          if ((k & 0x7fff) > exponent) continue;  // a NaN's payload is nobody's business
          ASSERT_EQ(first[k], other[k]) << set.name << " " << k << " by " << by;
          if (by == 1.0) ASSERT_EQ(first[k], k);
        }
      }
    }
  }
}

}  // namespace
