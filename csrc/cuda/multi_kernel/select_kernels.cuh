// The kernels of selection that multi_kernel/select.cu and sharded/select.cu both launch. One block
// serves one segment and adds its result to the row's, which the Call locates.
#pragma once

#include <cub/block/block_reduce.cuh>

#include "cuda/block/histogram.cuh"
#include "cuda/launch_kernel.cuh"

namespace gkd::cuda {

/// What every kernel of a selection takes. Rows count from the chunk's first one.
template <class T>
struct SelectCall {
  using Value = T;
  Problem p;
  Chunk chunk;
  T inv_temperature;

  /// What this block serves.
  __device__ std::int64_t row() const { return chunk.partition.row(blockIdx.x); }
  __device__ Segment segment() const { return chunk.segment(blockIdx.x); }
  template <class Loader>
  __device__ Loader loader() const {
    return Loader(p, chunk.row(blockIdx.x));
  }
};
template <class Call>
__device__ auto bins_of(const Call& c, std::int64_t row) {
  return bins_of(c.p, c.extremes(row), c.inv_temperature);
}

/// Call: merge_extremes(row, extremes).
template <class Loader, class Call>
__global__ void __launch_bounds__(kPassThreads) extremes_kernel(Call c) {
  using T = typename Call::Value;
  using Reduce = cub::BlockReduce<Extremes<T>, kPassThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const Extremes<T> thread =
      thread_extremes<T, kPassThreads>(c.template loader<Loader>(), c.segment());
  const Extremes<T> block = Reduce(storage).Reduce(thread, Merge{});
  if (threadIdx.x == 0) c.merge_extremes(c.row(), block);
}

/// Call: is_counted(row), extremes(row), counts(row).
template <class Loader, class Call>
__global__ void __launch_bounds__(kPassThreads) count_kernel(Call c) {
  using T = typename Call::Value;
  __shared__ int counts[kBins];
  const std::int64_t row = c.row();
  if (!c.is_counted(row)) return;  // the whole block: no barrier is left waiting
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) counts[b] = 0;
  __syncthreads();  // all bins are zero before the first count
  count_segment<T, kPassThreads>(c.template loader<Loader>(), c.segment(), bins_of(c, row), counts);
  __syncthreads();  // every thread has counted its classes
  int* row_counts = c.counts(row);
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) {
    if (counts[b] != 0) atomicAdd(&row_counts[b], counts[b]);
  }
}

}  // namespace gkd::cuda
