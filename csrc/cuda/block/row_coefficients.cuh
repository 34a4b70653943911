// From a row's parts to the constants of its last sweep, and from the sweep's sums to its loss.
#pragma once

#include <cub/warp/warp_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/state.h"
#include "cuda/tuning.h"

namespace gkd::cuda {

struct MergeMoments {
  double inv_temperature;
  __device__ GroupMoments<double> operator()(GroupMoments<double> x,
                                             const GroupMoments<double>& y) const {
    x.merge(y, inv_temperature);
    return x;
  }
};

using FinishStorage = cub::WarpReduce<GroupMoments<double>>::TempStorage;

/// A row's summaries, merged; valid in lane 0.
struct MergedParts {
  GroupMoments<double> group[2];
  bool bad;
};

/// One warp merges the parts part_at(0) to part_at(count - 1) of a row, in an order that their
/// number alone decides.
template <class PartAt>
__device__ MergedParts merge_parts(const Problem& p, PartAt part_at, std::int64_t count,
                                   FinishStorage& storage) {
  const int lane = threadIdx.x % kWarp;
  const MergeMoments merge{1 / p.weights.temperature};
  MergedParts all{};
  int bad = 0;
  for (std::int64_t part = lane; part < count; part += kWarp) {
    const PartMoments m = part_at(part);
    bad |= m.bad;
    for (int g = 0; g < 2; ++g) all.group[g] = merge(all.group[g], m.group[g]);
  }
  for (int g = 0; g < 2; ++g) {
    all.group[g] = cub::WarpReduce<GroupMoments<double>>(storage).Reduce(all.group[g], merge);
    __syncwarp();  // the second reduction reuses the first one's memory
  }
  all.bad = __any_sync(~0u, bad);
  return all;
}

/// A whole row's merged summaries to its coefficients, kind and report; one thread. `weight` is the
/// reduction's.
template <class T>
__device__ RowReport finish_merged(const Problem& p, const MergedParts& all, double weight,
                                   RowState<T>* row) {
  RowReport report;
  const auto& group = all.group;
  const bool no_teacher = group[0].sum_teacher == 0 && group[1].sum_teacher == 0;
  const bool no_student = group[0].sum_student == 0 && group[1].sum_student == 0;
  if (all.bad || no_teacher || no_student) {
    row->kind = RowKind::kInvalid;
    return report;
  }
  report.summary = row_coefficients(group, p.weights, row->coef);
  report.size = group[0].count;
  const T scale = static_cast<T>(p.grad_scale(weight).forward);
  for (int g = 0; g < 2; ++g) {
    row->coef[g].coef_q *= scale;
    row->coef[g].coef_diff *= scale;
  }
  return report;
}

/// Both, by one warp; lane 0 holds the report.
template <class T, class PartAt>
__device__ RowReport finish_parts(const Problem& p, PartAt part_at, std::int64_t count,
                                  double weight, RowState<T>* row, FinishStorage& storage) {
  const MergedParts all = merge_parts(p, part_at, count, storage);
  RowReport report;
  if (threadIdx.x % kWarp == 0) report = finish_merged(p, all, weight, row);
  return report;
}

/// Completes a report by the KL sums of the whole row.
__device__ inline void finalize_row(const Problem& p, RowKind kind, PartKl kl, RowReport* report) {
  report->primary = kl.group[0];
  report->secondary = kl.group[1];
  report->loss = row_loss(report->summary, p.weights, kl.group[0], kl.group[1]);
  if (kind == RowKind::kIgnored) report->loss = 0;
  if (kind == RowKind::kInvalid) report->loss = std::numeric_limits<double>::quiet_NaN();
}

}  // namespace gkd::cuda
