// The cut of a row whose classes are sharded over ranks: the steps of block/histogram.cuh, each in
// a kernel of its own, since ranks reduce their integers in between.
#include "cuda/multi_kernel/select_kernels.cuh"
#include "cuda/sharded/launch.h"

namespace gkd::cuda {
namespace {

template <class T>
struct ShardCall : SelectCall<T> {
  const long long* row_extremes;  ///< of the whole rows; null before they are known
  long long* out_extremes;        ///< of extremes_kernel
  int* out_counts;                ///< of count_kernel

  __device__ bool is_counted(std::int64_t) const { return true; }  // targets are not read yet
  __device__ void merge_extremes(std::int64_t row, const Extremes<T>& e) const {
    long long message[kMsgExtremes];
    extremes_to_message(e.high, e.low, message);
    for (int k = 0; k < kMsgExtremes; ++k) {
      atomicMax(out_extremes + row * kMsgExtremes + k, message[k]);
    }
  }
  __device__ Extremes<T> extremes(std::int64_t row) const {
    const long long* message = row_extremes + row * kMsgExtremes;
    return {high_from_message<T>(message), low_from_message<T>(message)};
  }
  __device__ int* counts(std::int64_t row) const { return out_counts + row * kBins; }
  __device__ RadixSearch<T> search(const long long* searches, std::int64_t row) const {
    if (searches != nullptr) return search_from_message<T>(searches + row * kSearchFields);
    return first_search(Keys<T>(this->p.ranking_dtype()), extremes(row).high);
  }
};

template <class T>
__global__ void neutral_extremes_kernel(std::int64_t rows, long long* extremes) {
  const std::int64_t row = thread_row();
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  if (row < rows) extremes_to_message(-kInfinity, kInfinity, extremes + row * kMsgExtremes);
}

/// One radix pass. The first one also sums the weight of the whole row and of what is above the
/// window.
template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads)
    histogram_kernel(ShardCall<T> c, const int* counts, const long long* searches,
                     unsigned long long* out) {
  using Reduce = cub::BlockReduce<WeightSums<T>, kPassThreads>;
  __shared__ union {
    WindowStorage<kPassThreads> window;
    typename Reduce::TempStorage weights;
  } storage;
  __shared__ unsigned long long histogram[kBins];
  const std::int64_t row = c.row();
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) histogram[b] = 0;
  const Bins<T> bins = bins_of(c, row);
  // Its barriers also order the zeros before the first weight.
  const BinRange window =
      find_window(counts + row * kBins, stop_rule(c.p.selection), BinMasses<kPassThreads>(bins),
                  c.p.row_classes(), storage.window);
  const Keys<T> keys(c.p.ranking_dtype());
  const ClassWeight<T> weight = class_weight(c.p, bins);
  const RadixSearch<T> search = c.search(searches, row);
  const int shift = search.bin_bits();
  const bool first_pass = searches == nullptr;
  WeightSums<T> thread;
  for_each_rank<T, kPassThreads>(c.template loader<Loader>(), c.segment(), [&](T r) {
    const int bin = bins.of(r);
    if (first_pass) {
      const unsigned long long w = weight.of(r);
      thread.total += w;
      thread.above += bin < window.first ? w : 0;
    }
    if (window.holds(bin)) {
      add_to_histogram(search, shift, keys, weight, keys.of(r), histogram);
    }
  });
  __syncthreads();  // every thread has added its classes and read the window, whose storage is free
  unsigned long long* row_out = out + row * kMsgHistogram;
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) {
    if (histogram[b] != 0) atomicAdd(&row_out[b], histogram[b]);
  }
  if (!first_pass) return;  // the whole block
  const WeightSums<T> block = Reduce(storage.weights).Reduce(thread, Merge{});
  if (threadIdx.x != 0) return;
  atomicAdd(&row_out[kMsgTotal], block.total);
  atomicAdd(&row_out[kMsgAbove], block.above);
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(kPassThreads)
    refine_kernel(ShardCall<T> c, const unsigned long long* histograms, const long long* searches,
                  long long* next, double* cut) {
  __shared__ RefineStorage<kPassThreads> storage;
  const std::int64_t row = blockIdx.x;
  const unsigned long long* histogram = histograms + row * kMsgHistogram;
  RadixSearch<T> search = c.search(searches, row);
  if (searches == nullptr) {
    search.above = histogram[kMsgAbove];
    search.total = histogram[kMsgTotal];
  }
  search = refine_search(histogram, stop_rule(c.p.selection), search, storage);
  if (threadIdx.x != 0) return;
  search_to_message(search, next + row * kSearchFields);
  cut[row] = static_cast<double>(Keys<T>(c.p.ranking_dtype()).logit(search.high));
}

/// Calls run(call, loader) in the problem's arithmetic, with an empty loader of its type.
template <class Run>
cudaError_t with_call(const Call& call, const long long* extremes, Run run) {
  const Problem& p = call.p;
  return with_arithmetic(p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Chunk all = chunk_of(0, p.rows, p, call.device);
    const ShardCall<T> c{{p, all, p.inv_group_temperature<T>()}, extremes, nullptr, nullptr};
    return with_loader<T>(p, [&](auto loader) { return run(c, loader); });
  });
}

}  // namespace

cudaError_t shard_extremes(const Call& call, long long* extremes) {
  return with_call(call, nullptr, [&](auto c, auto loader) -> cudaError_t {
    c.out_extremes = extremes;
    GKD_TRY(launch_threads(neutral_extremes_kernel<decltype(c.inv_temperature)>, c.p.rows,
                           call.stream, c.p.rows, extremes));
    return launch_segments(extremes_kernel<decltype(loader), decltype(c)>, c.chunk, call.stream, c);
  });
}

cudaError_t shard_counts(const Call& call, const long long* extremes, std::int32_t* counts) {
  const auto bytes = static_cast<std::size_t>(call.p.rows) * kBins * sizeof(*counts);
  GKD_TRY(cudaMemsetAsync(counts, 0, bytes, call.stream));
  return with_call(call, extremes, [&](auto c, auto loader) {
    c.out_counts = counts;
    return launch_segments(count_kernel<decltype(loader), decltype(c)>, c.chunk, call.stream, c);
  });
}

cudaError_t shard_histogram(const Call& call, const long long* extremes, const std::int32_t* counts,
                            const long long* search, long long* histogram) {
  const auto bytes = static_cast<std::size_t>(call.p.rows) * kMsgHistogram * sizeof(*histogram);
  GKD_TRY(cudaMemsetAsync(histogram, 0, bytes, call.stream));
  return with_call(call, extremes, [&](auto c, auto loader) {
    using T = decltype(c.inv_temperature);
    return launch_segments(histogram_kernel<decltype(loader), T>, c.chunk, call.stream, c, counts,
                           search, reinterpret_cast<unsigned long long*>(histogram));
  });
}

cudaError_t shard_refine(const Call& call, const long long* extremes, const long long* histogram,
                         const long long* search, long long* next, double* cut) {
  return with_call(call, extremes, [&](auto c, auto) {
    return launch(refine_kernel<decltype(c.inv_temperature)>, c.p.rows, kPassThreads, call.stream,
                  c, reinterpret_cast<const unsigned long long*>(histogram), search, next, cut);
  });
}

}  // namespace gkd::cuda
