// Cross-entropy of rows that are read by class: a segment's sum, and the row's coefficients.
#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/warp/warp_reduce.cuh>

#include "cuda/block/passes.cuh"
#include "cuda/tuning.h"
#include "cuda/workspace.h"

namespace gkd::cuda {

struct Largest {
  template <class T>
  __device__ __forceinline__ T operator()(T x, T y) const {
    return y > x ? y : x;
  }
};

template <class T, int kThreads>
union OthersStorage {
  typename cub::BlockReduce<T, kThreads>::TempStorage high;
  typename cub::BlockReduce<double, kThreads>::TempStorage sum;
  T common;
};

/// The sum over a segment's classes but the target; valid in thread 0.
template <class T, int kThreads, class Loader>
__device__ OtherSum sum_others(const Loader& loader, Segment segment, std::int64_t target, T scale,
                               OthersStorage<T, kThreads>& storage) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  T high = kNone;
  for_each_tile<T, kThreads>(loader, segment, [&](std::int64_t first, const Tile<T>& tile) {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (first + k * kThreads != target) high = Largest()(high, tile.s[k]);
    }
  });
  high = cub::BlockReduce<T, kThreads>(storage.high).Reduce(high, Largest());
  __syncthreads();  // the reduction's memory is free
  if (threadIdx.x == 0) storage.common = high;
  __syncthreads();  // every thread reads the segment's largest logit
  high = storage.common;
  const T finite = finite_or_zero(high);
  double sum = 0;
  for_each_tile<T, kThreads>(loader, segment, [&](std::int64_t first, const Tile<T>& tile) {
    T tile_sum = T(0);
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (first + k * kThreads != target) tile_sum += exp_of((tile.s[k] - finite) * scale);
    }
    sum += static_cast<double>(tile_sum);
  });
  __syncthreads();  // every thread has read the largest logit before its memory is reused
  sum = cub::BlockReduce<double, kThreads>(storage.sum).Sum(sum);
  return {static_cast<double>(high), sum};
}

using OthersReduce = cub::WarpReduce<OtherSum>;

/// One warp merges part(0) to part(count - 1), in an order that `count` alone decides. Valid in
/// lane 0.
template <class Part>
__device__ OtherSum merge_others(Part part, std::int64_t count, double scale,
                                 OthersReduce::TempStorage& storage) {
  const auto merge = [=](OtherSum x, const OtherSum& y) {
    x.merge(y, scale);
    return x;
  };
  OtherSum row;
  for (std::int64_t k = threadIdx.x % kWarp; k < count; k += kWarp) row = merge(row, part(k));
  return OthersReduce(storage).Reduce(row, merge);
}

/// A row's coefficients from its cross-entropy. `weight`: the reduction's factor.
template <class T>
__device__ void set_head(const Problem& p, const CrossEntropy& row, double high, double weight,
                         RowHead<T>* head) {
  const double slope = p.weights.cross_entropy * p.weights.scale * p.grad_scale(weight).forward;
  head->coef = row.coefficients<T>(high, slope);
  head->cross_entropy = row.loss;
}

/// Turns a row's report, whose loss is that of the distillation, into that of training_loss.
template <class T>
__device__ void finish_head(const Problem& p, RowKind kind, RowReport* report, RowHead<T>* head) {
  head->distillation = report->loss;
  if (p.weights.cross_entropy == 0 || kind == RowKind::kIgnored)
    head->cross_entropy = 0;
  else if (kind == RowKind::kInvalid)
    head->cross_entropy = report->loss;
  report->loss = total_loss(p.all_weights(), head->cross_entropy, head->distillation);
  if (kind == RowKind::kInvalid) report->loss = head->distillation;
}

}  // namespace gkd::cuda
