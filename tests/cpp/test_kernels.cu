// Every kernel through the launchers, without torch, against the formulas in long double.
// Sizes straddle what the kernels tile by (a tile is 256 threads x 8 classes) and stay small: the
// program also runs on an emulated device.
#include <atomic>
#include <string>
#include <thread>

#include "kernel_case.h"

namespace gkd::cuda::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class Kernels : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

double bound(const Problem& p) { return p.compute_in_double() ? 1e-12 : 2e-6; }

/// Half an ulp of the gradient's dtype where it is narrower than the arithmetic, relative to the
/// largest entry.
double rounding(const Problem& p) {
  switch (p.student.dtype) {
    case Dtype::kHalf:
      return 0.51 / 1024;
    case Dtype::kBFloat16:
      return 0.51 / 128;
    case Dtype::kFloat:
      return p.compute_in_double() ? 0.51 / (1 << 23) : 0;
    default:
      return 0;
  }
}

double largest(const std::vector<double>& v) {
  double high = 0;
  for (double x : v) high = std::max(high, std::fabs(x));
  return high;
}

void check_with(const Way& way, Case c, const char* what) {
  SCOPED_TRACE(testing::Message() << way.name << ": " << what << " rows " << c.p.rows << " classes "
                                  << c.p.classes);
  c.p.reduction = Reduction::kNone;
  const Outcome actual = run(c, way);
  const Outcome right = expect(c, actual);
  const double scale = std::max(largest(right.loss), 1e-30);
  for (std::size_t i = 0; i < right.loss.size(); ++i) {
    EXPECT_NEAR(actual.loss[i], right.loss[i], bound(c.p) * scale) << "loss of row " << i;
    EXPECT_EQ(actual.columns[2][i], right.columns[2][i]) << "cut of row " << i;
    EXPECT_EQ(actual.size[i], right.size[i]) << "size of row " << i;
    for (int k : {0, 1, 3, 4, 5}) {
      EXPECT_NEAR(actual.columns[k][i], right.columns[k][i],
                  bound(c.p) * std::max(1.0, largest(right.columns[k])))
          << "column " << k << " of row " << i;
    }
    for (std::int64_t j = 0; j < c.p.classes; ++j) {
      const std::size_t k = i * static_cast<std::size_t>(c.p.classes) + static_cast<std::size_t>(j);
      const double rank = (c.p.selection.by_student ? c.student : c.teacher)[k];
      const bool inside = rank >= right.columns[2][i] || (!c.target.empty() && c.target[i] == j);
      ASSERT_EQ(actual.mask[k] != 0, inside) << "class " << j << " of row " << i;
    }
  }
  const double high = std::max(largest(right.gradient), 1e-30);
  for (std::size_t k = 0; k < right.gradient.size(); ++k) {
    EXPECT_NEAR(actual.gradient[k], right.gradient[k], (bound(c.p) + rounding(c.p)) * high)
        << "gradient " << k;
  }
}

void check(const Case& c, const char* what) {
  for (const Way& way : ways_of(c.p)) check_with(way, c, what);
}

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

TEST_F(Kernels, InvalidAndIgnoredRowsLeaveTheOthersAlone) {
  Case clean(6, 2100);
  clean.p.reduction = Reduction::kNone;
  for (const Way& way : ways_of(clean.p)) {
    SCOPED_TRACE(way.name);
    const Outcome base = run(clean, way);
    Case c(6, 2100);
    c.p.reduction = Reduction::kNone;
    c.target = {-100, -5, 2100, 0, 0, 0};
    c.teacher[0] = kNaN;  // of a row that is ignored
    c.teacher[3 * 2100 + 2099] = -kNaN;
    c.student[4 * 2100 + 5] = kInfinity;
    std::fill(c.student.begin() + 5 * 2100, c.student.end(), -kInfinity);
    const Outcome o = run(c, way);
    EXPECT_EQ(o.loss[0], 0);
    for (std::size_t k = 0; k < 2100; ++k) ASSERT_EQ(o.gradient[k], 0) << k;
    for (std::size_t row = 1; row < 6; ++row) {
      EXPECT_TRUE(std::isnan(o.loss[row])) << row;
      for (std::size_t k : {std::size_t(0), std::size_t(2099)}) {
        EXPECT_TRUE(std::isnan(o.gradient[row * 2100 + k])) << row;
      }
    }
    Case one(6, 2100);
    one.p.reduction = Reduction::kNone;
    one.teacher[2 * 2100 + 77] = kNaN;
    const Outcome other = run(one, way);
    for (std::size_t row = 0; row < 6; ++row) {
      if (row == 2) continue;
      EXPECT_EQ(other.loss[row], base.loss[row]) << row;
    }
  }
}

TEST_F(Kernels, ReductionsAndWeights) {
  for (const Way& way : ways_of(Case(5, 130).p)) {
    SCOPED_TRACE(way.name);
    Case c(5, 130);
    c.target = {1, -100, 3, 4, -100};
    c.p.reduction = Reduction::kNone;
    const Outcome rows = run(c, way);
    const double sum = rows.loss[0] + rows.loss[2] + rows.loss[3];
    c.p.reduction = Reduction::kSum;
    EXPECT_NEAR(run(c, way).loss[0], sum, 1e-6 * sum);
    c.p.reduction = Reduction::kMean;
    const Outcome mean = run(c, way);
    EXPECT_NEAR(mean.loss[0], sum / 3, 1e-6 * sum);
    for (std::size_t k = 0; k < rows.gradient.size(); ++k) {
      ASSERT_NEAR(mean.gradient[k], rows.gradient[k], 1e-6 * largest(rows.gradient)) << k;
    }
    c.target.assign(5, -100);
    EXPECT_EQ(run(c, way).loss[0], 0);
  }
}

TEST_F(Kernels, MoreRowsThanOneSortChunk) {
  Case c(503, 3);
  check(c, "chunks of 500 segments");
}

TEST_F(Kernels, ALongRowIsSortedByTheWholeDevice) {
  Case c(1, (std::int64_t(1) << 18) + 3, Dtype::kHalf, Dtype::kHalf);
  c.p.selection.group_size = 1000;
  check(c, "device-wide sort");
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

TEST_F(Kernels, ARefusedLaunchTakesSeveralKernels) {
  // More blocks than the emulated device holds. A real one with 100 multiprocessors runs the grid.
  const Device device{100, 30 << 10, 0, true};
  Case c(1, 20000);
  ASSERT_EQ(plan_fused(c.p, device).strategy, LaunchStrategy::kGrid);
  ASSERT_GT(plan_fused(c.p, device).blocks_per_row, 64);
  check_with({"refused", false, device}, c, "a large grid");
}

TEST_F(Kernels, ThreadsWithDifferentShapesDoNotDisturbEachOther) {
  // Both take more than the 48 KiB that a kernel has without asking for them, and not the same.
  // Their rows are ignored, so that launches follow each other quickly.
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (std::int64_t classes : {5500, 10000}) {
    threads.emplace_back([&failed, classes] {
      Problem p = Case(1, classes).p;
      const std::size_t bytes = static_cast<std::size_t>(classes) * sizeof(float);
      Buffer logits(bytes);
      cudaMemset(logits.get(), 0, bytes);
      p.student.data = p.teacher.data = logits.get();
      const Device device{1, 100 << 10};
      const FusedPlan plan = plan_fused(p, device);
      failed += plan.strategy != LaunchStrategy::kBlock || plan.shared_bytes <= 48 << 10;
      Buffer workspace(workspace_bytes(p, device));
      const auto rows = lay_out<float>(p, device, 0, 0, workspace.get());
      const float weight = 1;
      cudaMemcpy(rows.weight, &weight, sizeof(weight), cudaMemcpyHostToDevice);
      RowState<float> state{};
      state.kind = RowKind::kIgnored;
      cudaMemcpy(rows.state, &state, sizeof(state), cudaMemcpyHostToDevice);
      const FusedCall<float> call{{p, nullptr, false, rows}, plan, true};
      for (int k = 0; k < 1000; ++k) failed += run_fused(call, nullptr) != cudaSuccess;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failed, 0);
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
