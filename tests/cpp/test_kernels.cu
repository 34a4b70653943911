// The values of every kernel through the launchers, without torch, against the formulas in long
// double. Sizes straddle what the kernels tile by (a tile is 256 threads x 8 classes) and stay
// small: the program also runs on an emulated device.
#include "kernel_check.h"

namespace gkd::cuda::test {
namespace {

TEST_F(Kernels, EveryRegimeIsReached) {
  for (Dtype d : {Dtype::kHalf, Dtype::kFloat, Dtype::kDouble}) {
    std::vector<std::string> names;
    for (const Way& way : ways_of(Case(3, 6150, d, d).p)) names.push_back(way.name);
    for (const char* name : {"sort", "split", "block", "cluster", "grid"}) {
      EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
    }
    const int streamed = d == Dtype::kDouble ? 0 : 1;
    EXPECT_EQ(std::count(names.begin(), names.end(), "streamed grid"), streamed);
    EXPECT_EQ(std::count(names.begin(), names.end(), "streamed cluster"), 2 * streamed);
  }
}

// 1, 2: degenerate groups; 33: over a warp; 2047 to 2049: around a tile; 6150: several parts.
TEST_F(Kernels, RowsShorterAndLongerThanATile) {
  for (std::int64_t classes : {1, 2, 33, 2047, 2048, 2049, 6150}) check({3, classes}, "float");
}

TEST_F(Kernels, EveryPairOfDtypes) {
  const Dtype all[] = {Dtype::kHalf, Dtype::kBFloat16, Dtype::kFloat, Dtype::kDouble};
  for (Dtype s : all) {
    for (Dtype t : all) {
      Case c(2, 301, s, t);
      c.p.weights.secondary = 0.5;
      check(c, "dtypes");
      c.p.selection.by_student = true;
      check(c, "dtypes, ranked by the student");
    }
  }
}

// A sure row, whose target is the largest by far; one whose target is no class of the group; one
// with masked classes.
TEST_F(Kernels, CrossEntropyAndMargins) {
  for (Dtype d : {Dtype::kHalf, Dtype::kBFloat16, Dtype::kFloat, Dtype::kDouble}) {
    Case c(3, 6150, d, d);
    c.target = {6149, 0, 3073};
    c.student[6149] += 60;
    c.student[6150] = c.teacher[6150] = -20;
    for (std::size_t j = 2 * 6150; j < 2 * 6150 + 40; ++j) c.student[j] = c.teacher[j] = -kInfinity;
    c.p.weights.scale = 1.5;
    c.p.weights.distillation = 0.5;
    c.p.weights.cross_entropy = 2;
    c.p.head.is_on = true;
    c.p.head.margin = 0.75;
    for (bool by_student : {false, true}) {
      c.p.selection.by_student = by_student;
      check(c, by_student ? "cross-entropy, ranked by the student" : "cross-entropy");
    }
    c.p.head.distill_margin = true;
    check(c, "a margin in both networks");
  }
}

TEST_F(Kernels, SettingsOfTheFamily) {
  Case c(3, 517);
  c.target = {5, 0, 516};
  c.p.weights = {4, 1, 1, 1, true};
  check(c, "KD");
  c.p.selection.group_size = 0;
  c.p.weights = {4, 0, 1, 8, false};
  check(c, "DKD");
  c.p.selection.group_size = 10;
  c.p.weights = {1, 2, 1, 0.5, false};
  check(c, "GDKD");
  for (std::int64_t size : {516, 517, 600}) {
    c.p.selection.group_size = size;
    check(c, "nearly all and all");
  }
  c.p.selection.group_size = -1;
  for (double threshold : {1e-30, 0.5, 0.999999, 1.0}) {
    c.p.selection.threshold = threshold;
    check(c, "threshold");
  }
  c.p.weights = {4, 0, 0, 0, false};
  check(c, "no weight at all");
}

// At the last one the largest exponents are no integers that a float holds.
TEST_F(Kernels, GroupTemperatures) {
  for (double temperature : {0.5, 40.0, 1e-8}) {
    for (Dtype d : {Dtype::kHalf, Dtype::kFloat, Dtype::kDouble}) {
      Case c(1, 700, d, d);
      c.p.selection.temperature = temperature;
      for (bool by_student : {false, true}) {
        c.p.selection.by_student = by_student;
        check(c, "group temperature");
      }
    }
  }
}

TEST_F(Kernels, TiesStayTogether) {
  for (Dtype d : {Dtype::kFloat, Dtype::kBFloat16}) {
    Case c(2, 700, d, d);
    for (double& x : c.teacher) x = std::round(x / 4) * 4;
    for (std::int64_t size : {-1, 1, 350}) {
      c.p.selection.group_size = size;
      check(c, "ties");
    }
    std::fill(c.teacher.begin(), c.teacher.end(), -3.5);
    c.p.selection.group_size = -1;
    check(c, "all equal");
  }
  Case zeros(1, 64);
  for (std::size_t j = 0; j < 64; ++j) zeros.teacher[j] = j < 40 ? (j % 2 ? 0.0 : -0.0) : -80;
  check(zeros, "signed zeros");
}

TEST_F(Kernels, UnalignedAndStridedRowsGiveTheSameBits) {
  Case plain(3, 2051);
  plain.target = {7, 2050, -100};
  for (const Way& way : ways_of(plain.p)) {
    SCOPED_TRACE(way.name);
    const Outcome base = run(plain, way);
    for (std::int64_t offset : {1, 2, 3}) {
      for (std::int64_t stride : {1, 3}) {
        Case c(3, 2051);
        c.target = plain.target;
        c.offset = offset;
        c.p.student.row_stride = 2051 * stride + offset;
        c.p.student.col_stride = stride;
        c.p.teacher.row_stride = 2051 * stride + 5;
        c.p.teacher.col_stride = stride;
        c.p.selection.sort = way.sort;
        if (plan_fused(c.p, way.device).strategy != plan_fused(plain.p, way.device).strategy) {
          continue;  // strided rows take the split kernels, which add up in another order
        }
        const Outcome o = run(c, way);
        EXPECT_EQ(o.loss, base.loss) << offset << ", " << stride;
        EXPECT_EQ(o.gradient, base.gradient) << offset << ", " << stride;
      }
    }
  }
}

TEST_F(Kernels, MinusInfinityHasProbabilityZero) {
  for (std::int64_t size : {-1, 3}) {
    Case c(3, 300);
    c.p.selection.group_size = size;
    for (std::size_t j = 0; j < 300; ++j) {
      if (j % 3 == 0) c.teacher[j] = c.student[j] = -kInfinity;  // padding
      if (j % 3 == 1) c.teacher[300 + j] = -kInfinity;           // the teacher rules it out
      if (j < 299) c.teacher[600 + j] = c.student[600 + j] = -kInfinity;  // one class is left
    }
    check(c, "-inf");
  }
}

TEST_F(Kernels, GroupsFarApartKeepTheirDigits) {
  for (double gap :
       {30.0, 60.0, 200.0}) {  // nats: the rest is small, then 0, as floats of one shift
    for (bool student_too : {true, false}) {
      Case c(2, 3001);
      c.p.weights = {1, 1, 1, 1, false};
      for (std::size_t k = 0; k < c.teacher.size(); ++k) {
        if (k % 3001 % 100 == 0) continue;
        c.teacher[k] -= gap + 30;
        if (student_too) c.student[k] -= gap + 30;
      }
      check(c, "groups far apart");
    }
  }
}

TEST_F(Kernels, NearlyEqualLogitsKeepTheirDigits) {
  Case c(2, 2500);
  for (std::size_t k = 0; k < c.student.size(); ++k) {
    c.teacher[k] = static_cast<float>(c.teacher[k]);
    c.student[k] = static_cast<float>(c.teacher[k] * (1 + 1e-5 * std::sin(k)));
  }
  c.p.weights.secondary = 1;
  check(c, "spread 1e-5");
  c.student = c.teacher;
  c.p.reduction = Reduction::kNone;
  for (const Way& way : ways_of(c.p)) {
    SCOPED_TRACE(way.name);
    const Outcome equal = run(c, way);
    for (double x : equal.loss) EXPECT_EQ(x, 0);
    for (double x : equal.gradient) ASSERT_EQ(x, 0);
  }
}

}  // namespace
}  // namespace gkd::cuda::test
