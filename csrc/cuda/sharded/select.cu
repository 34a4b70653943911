// The cut of a row whose classes are sharded over ranks: the steps of block/histogram.cuh, each in
// a kernel of its own, since ranks reduce their integers in between.
#include "cuda/multi_kernel/select_kernels.cuh"
#include "cuda/sharded/launch.h"
#include "cuda/workspace.h"

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
  __device__ Bins<T> bins(std::int64_t row) const {
    return bins_of(this->p, extremes(row), this->inv_temperature);
  }
  __device__ int* counts(std::int64_t row) const { return out_counts + row * kBins; }
  __device__ RadixSearch<T> search(const long long* searches, std::int64_t row) const {
    if (searches != nullptr) return search_from_message<T>(searches + row * kSearchFields);
    return first_search(Keys<T>(this->p.ranking().dtype), extremes(row).high);
  }
};

template <class T>
__global__ void neutral_extremes_kernel(std::int64_t rows, long long* extremes) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
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
  const Bins<T> bins = c.bins(row);
  // Its barriers also order the zeros before the first weight.
  const BinRange window = find_window<T, kPassThreads>(
      counts + row * kBins, stop_rule(c.p.selection()), bins, c.p.row_classes(), storage.window);
  const Keys<T> keys(c.p.ranking().dtype);
  const ClassWeight<T> weight = class_weight(c.p, bins.high, c.inv_temperature);
  const RadixSearch<T> search = c.search(searches, row);
  const int shift = search.bin_bits();
  const bool first_pass = searches == nullptr;
  WeightSums<T> thread;
  for_each_rank<T, kPassThreads>(
      c.template loader<Loader>(), c.segment(), c.p.by_student, [&](T r) {
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
  const WeightSums<T> block = Reduce(storage.weights).Reduce(thread, MergeWeightSums{});
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
  search = refine_search<T, kPassThreads>(histogram, stop_rule(c.p.selection()), search, storage);
  if (threadIdx.x != 0) return;
  search_to_message(search, next + row * kSearchFields);
  cut[row] = static_cast<double>(Keys<T>(c.p.ranking().dtype).logit(search.high));
}

/// Calls run(call, tag) in the problem's arithmetic, with a null pointer of its loader.
template <class Run>
cudaError_t with_call(const Problem& p, const Device& device, const long long* extremes, Run run) {
  return with_arithmetic(p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Chunk rows{0, p.rows, partition_rows(p.rows, p.classes, device)};
    const ShardCall<T> call{
        {p, rows, static_cast<T>(1 / p.weights.temperature)}, extremes, nullptr, nullptr};
    return with_loader<T>(p, [&](auto* tag) -> cudaError_t {
      run(call, tag);
      return cudaGetLastError();
    });
  });
}

}  // namespace

cudaError_t shard_extremes(const Problem& p, const Device& device, long long* extremes,
                           cudaStream_t stream) {
  return with_call(p, device, nullptr, [&](auto c, auto* tag) {
    using Loader = std::remove_pointer_t<decltype(tag)>;
    c.out_extremes = extremes;
    neutral_extremes_kernel<decltype(c.inv_temperature)>
        <<<num_blocks(p.rows, kPassThreads), kPassThreads, 0, stream>>>(p.rows, extremes);
    extremes_kernel<Loader><<<c.chunk.blocks(), kPassThreads, 0, stream>>>(c);
  });
}

cudaError_t shard_counts(const Problem& p, const Device& device, const long long* extremes,
                         std::int32_t* counts, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(p.rows) * kBins * sizeof(*counts);
  GKD_TRY(cudaMemsetAsync(counts, 0, bytes, stream));
  return with_call(p, device, extremes, [&](auto c, auto* tag) {
    using Loader = std::remove_pointer_t<decltype(tag)>;
    c.out_counts = counts;
    count_kernel<Loader><<<c.chunk.blocks(), kPassThreads, 0, stream>>>(c);
  });
}

cudaError_t shard_histogram(const Problem& p, const Device& device, const long long* extremes,
                            const std::int32_t* counts, const long long* search,
                            long long* histogram, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(p.rows) * kMsgHistogram * sizeof(*histogram);
  GKD_TRY(cudaMemsetAsync(histogram, 0, bytes, stream));
  return with_call(p, device, extremes, [&](auto c, auto* tag) {
    using Loader = std::remove_pointer_t<decltype(tag)>;
    histogram_kernel<Loader><<<c.chunk.blocks(), kPassThreads, 0, stream>>>(
        c, counts, search, reinterpret_cast<unsigned long long*>(histogram));
  });
}

cudaError_t shard_refine(const Problem& p, const long long* extremes, const long long* histogram,
                         const long long* search, long long* next, double* cut,
                         cudaStream_t stream) {
  return with_call(p, Device{}, extremes, [&](auto c, auto*) {
    refine_kernel<<<static_cast<unsigned>(p.rows), kPassThreads, 0, stream>>>(
        c, reinterpret_cast<const unsigned long long*>(histogram), search, next, cut);
  });
}

}  // namespace gkd::cuda
