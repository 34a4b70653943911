// Calls of the kernels as they come in a training: rows that are ignored or invalid, reductions,
// many rows, threads, and launches that the device refuses.
#include <atomic>
#include <thread>

#include "kernel_check.h"

namespace gkd::cuda::test {
namespace {

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

}  // namespace
}  // namespace gkd::cuda::test
