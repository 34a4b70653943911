// From the moments of a row's segments to the coefficients of its gradient pass, and from the KL
// sums of that pass to its loss.
#pragma once

#include <cub/warp/warp_reduce.cuh>

#include "cuda/buffers.h"
#include "cuda/cub.h"
#include "cuda/tuning.h"

namespace gkd::cuda {

struct MergeStorage {
  cub::WarpReduce<GroupMoments<double>>::TempStorage reduce;
  SegmentMoments row;
};

/// InTurn by a warp, all lanes of which call it: lane i has f(i), and every lane gets all results.
struct ByLane {
  template <int kN, class F>
  __device__ __forceinline__ void each(double (&result)[kN], F f) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const double mine = f(lane < kN ? lane : kN - 1);
#pragma unroll
    for (int i = 0; i < kN; ++i) result[i] = __shfl_sync(~0u, mine, i);
  }
};

/// One warp merges the moments segment_at(0) to segment_at(count - 1) of a row, in an order that
/// `count` alone decides. Valid in lane 0.
template <class SegmentAt>
__device__ SegmentMoments merge_moments(const Problem& p, SegmentAt segment_at, std::int64_t count,
                                        MergeStorage& storage) {
  const int lane = threadIdx.x % kWarp;
  const double inv_temperature = 1 / p.weights.exponent_temperature();
  const auto merge = [=](GroupMoments<double> x, const GroupMoments<double>& y) {
    x.merge(y, inv_temperature);
    return x;
  };
  SegmentMoments row{};
  int invalid = 0;
  for (std::int64_t segment = lane; segment < count; segment += kWarp) {
    const SegmentMoments m = segment_at(segment);
    invalid |= m.invalid;
    for (int g = 0; g < 2; ++g) row.group[g] = merge(row.group[g], m.group[g]);
  }
  for (int g = 0; g < 2; ++g) {
    row.group[g] =
        cub::WarpReduce<GroupMoments<double>>(storage.reduce).Reduce(row.group[g], merge);
    __syncwarp();  // the second reduction reuses the first one's memory
  }
  row.invalid = __any_sync(~0u, invalid);
  return row;
}

/// A warp sets a row's coefficients from its moments, which lie in shared memory, or its kind if it
/// is invalid. `weight` is the reduction's factor. The report is valid in lane 0.
template <class T>
__device__ RowReport set_row(const Problem& p, const SegmentMoments& moments, double weight,
                             RowState<T>* row) {
  const auto& group = moments.group;
  const bool first = threadIdx.x % kWarp == 0;
  const bool no_teacher = (group[0].sum_teacher == 0) & (group[1].sum_teacher == 0);
  const bool no_student = (group[0].sum_student == 0) & (group[1].sum_student == 0);
  RowReport report;
  // Without branches: all loads at once. The row waits for this warp.
  if ((moments.invalid != 0) | no_teacher | no_student) {
    if (first) row->kind = RowKind::kInvalid;
    return report;
  }
  GroupCoef<T> coef[2];
  report.summary = row_coefficients(group, p.all_weights(), coef, ByLane{});
  report.size = group[0].count;
  const T scale = static_cast<T>(p.grad_scale(weight).forward);
  for (int g = 0; g < 2; ++g) {
    coef[g].coef_q *= scale;
    coef[g].coef_diff *= scale;
    if (first) row->coef[g] = coef[g];
  }
  return report;
}

/// merge_moments() over the whole row, then set_row().
template <class T, class SegmentAt>
__device__ RowReport merge_into_row(const Problem& p, SegmentAt segment_at, std::int64_t count,
                                    double weight, RowState<T>* row, MergeStorage& storage) {
  const SegmentMoments moments = merge_moments(p, segment_at, count, storage);
  if (threadIdx.x % kWarp == 0) storage.row = moments;
  __syncwarp();  // every lane reads the moments
  return set_row(p, storage.row, weight, row);
}

/// Completes a report with the KL sums of the whole row.
__device__ inline void finalize_row(const Problem& p, RowKind kind, SegmentKl kl,
                                    RowReport* report) {
  report->primary = kl.group[0];
  report->secondary = kl.group[1];
  report->loss = row_loss(report->summary, p.weights, kl.group[0], kl.group[1]);
  if (kind == RowKind::kIgnored) report->loss = 0;
  if (kind == RowKind::kInvalid) report->loss = std::numeric_limits<double>::quiet_NaN();
}

}  // namespace gkd::cuda
