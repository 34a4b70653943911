// A block's passes over a segment of a row: the loop over tiles, and the pass that writes the
// gradient and sums each group's KL. Neither depends on the number of blocks per row.
#pragma once

#include <cub/block/block_reduce.cuh>

#include "cuda/block/load_store.cuh"
#include "cuda/buffers.h"
#include "cuda/cub.h"
#include "cuda/partition.h"
#include "math/cut.h"

namespace gkd::cuda {

/// Classes that one thread loads at once, kThreads apart.
template <class T>
struct Tile {
  T s[kItems], u[kItems];
};

/// Calls visit(first, tile): item k is class first + k * kThreads, past the segment's end where
/// `first + k * kThreads >= segment.end`; such an item is -inf, which adds nothing to any sum.
template <class T, int kThreads, class Loader, class Visit>
__device__ __forceinline__ void for_each_tile(const Loader& loader, Segment segment, Visit visit) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  for (std::int64_t first = segment.begin + threadIdx.x; first < segment.end;
       first += kItems * kThreads) {
    Tile<T> tile;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      tile.s[k] = tile.u[k] = kNone;
      const std::int64_t j = first + k * kThreads;
      if (j < segment.end) loader.load(j, &tile.s[k], &tile.u[k]);
    }
    visit(first, tile);
  }
}

template <int kThreads>
using KlStorage = typename cub::BlockReduce<SegmentKl, kThreads>::TempStorage;

/// Writes class j's gradient to gradient[offset + j] unless `gradient` is null, and returns each
/// group's KL sum, valid in thread 0. A group without a KL weight has its KL summed only if
/// `all_kl`; its gradient needs the student's exponential alone. kCrossEntropy: the gradient has
/// the part of `head` too.
template <class T, int kThreads, bool kCrossEntropy = false, class Loader>
__device__ SegmentKl write_gradient(const Loader& loader, Segment segment, const RowState<T>& row,
                                    T inv_temperature, bool all_kl, void* gradient,
                                    std::int64_t offset, KlStorage<kThreads>& storage,
                                    const CrossEntropyCoef<T>& head = {}, T scale = T(1)) {
  SegmentKl sum{};
  const GroupCoef<T> primary = row.coef[0], rest = row.coef[1];
  const bool primary_kl = all_kl || primary.coef_diff != T(0);
  const bool rest_kl = all_kl || rest.coef_diff != T(0);
  for_each_tile<T, kThreads>(loader, segment, [&](std::int64_t first, const Tile<T>& tile) {
    T kl[2] = {T(0), T(0)};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j >= segment.end) continue;
      const T rank = loader.by_student ? tile.s[k] : tile.u[k];
      const bool in = in_primary(rank, row.cut, j, row.target);
      const GroupCoef<T> c = in ? primary : rest;
      T value;
      if (in ? primary_kl : rest_kl) {
        const ClassTerms<T> t = class_kl(tile.s[k], tile.u[k], c, inv_temperature);
        kl[in ? 0 : 1] += t.kl;
        value = class_grad(t, c);
      } else {
        value = c.coef_q * class_student(tile.s[k], c, inv_temperature);
      }
      if constexpr (kCrossEntropy) {
        value +=
            j == row.target ? head.target : head.factor * exp_of((tile.s[k] - head.high) * scale);
      }
      if (gradient != nullptr) loader.store(gradient, offset + j, value);
    }
    sum.group[0] += static_cast<double>(kl[0]);
    sum.group[1] += static_cast<double>(kl[1]);
  });
  return cub::BlockReduce<SegmentKl, kThreads>(storage).Reduce(sum, Merge{});
}

/// Fills a segment of the gradient of a row that is not counted: with 0 if it is ignored, with NaN
/// if it is invalid.
template <class T, int kThreads, class Loader>
__device__ void fill_gradient(const Loader& loader, Segment segment, RowKind kind, void* gradient,
                              std::int64_t offset) {
  if (gradient == nullptr) return;
  const T value = kind == RowKind::kIgnored ? T(0) : std::numeric_limits<T>::quiet_NaN();
  for (std::int64_t j = segment.begin + threadIdx.x; j < segment.end; j += kThreads) {
    loader.store(gradient, offset + j, value);
  }
}

}  // namespace gkd::cuda
