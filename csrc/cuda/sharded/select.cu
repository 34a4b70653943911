// The cut of a row whose classes are split over ranks: the block-wide pieces of select.cuh, each in
// a kernel of its own, since ranks add up their integers in between.
#include <cub/block/block_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/select.cuh"
#include "cuda/shard.h"
#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

/// What every kernel takes. Block b sweeps part b % parts of row b / parts.
template <class T>
struct Call {
  Problem p;
  Split split;
  const long long* wire;  ///< extremes of the whole rows
  T inv_temperature;

  __device__ std::int64_t row() const { return blockIdx.x / split.parts; }
  __device__ Slice slice() const {
    const std::int64_t begin = (blockIdx.x % split.parts) * split.part_classes;
    return {begin, min(begin + split.part_classes, p.classes)};
  }
  __device__ Extremes<T> extremes(std::int64_t row) const {
    const long long* from = wire + row * kMsgExtremes;
    return {high_from_message<T>(from), low_from_message<T>(from)};
  }
  __device__ Bins<T> bins(std::int64_t row) const {
    return bins_of(p, extremes(row), inv_temperature);
  }
  __device__ RadixSearch<T> search(const long long* from, std::int64_t row) const {
    if (from != nullptr) return search_from_message<T>(from + row * kSearchFields);
    return first_search(Keys<T>(p.ranking().dtype), extremes(row).high);
  }
  unsigned blocks() const { return static_cast<unsigned>(p.rows * split.parts); }
};

template <class T>
__global__ void no_extremes_kernel(std::int64_t rows, long long* extremes) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  if (row < rows) extremes_to_message(-kInfinity, kInfinity, extremes + row * kMsgExtremes);
}

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) extremes_kernel(Call<T> c, long long* extremes) {
  using Reduce = cub::BlockReduce<Extremes<T>, kSweepThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const Extremes<T> own =
      extremes_of<T, kSweepThreads>(Source(c.p, c.row()), c.slice(), c.p.by_student);
  const Extremes<T> all = Reduce(storage).Reduce(own, WidenExtremes{});
  if (threadIdx.x != 0) return;
  long long wire[kMsgExtremes];
  extremes_to_message(all.high, all.low, wire);
  for (int k = 0; k < kMsgExtremes; ++k) {
    atomicMax(extremes + c.row() * kMsgExtremes + k, wire[k]);
  }
}

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) count_kernel(Call<T> c, int* counts) {
  __shared__ int own[kBins];
  const std::int64_t row = c.row();
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) own[b] = 0;
  __syncthreads();  // all zero before the first count
  count_slice<T, kSweepThreads>(Source(c.p, row), c.slice(), c.p.by_student, c.bins(row), own);
  __syncthreads();  // all counts are in
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) {
    if (own[b] != 0) atomicAdd(&counts[row * kBins + b], own[b]);
  }
}

/// One spread. The first one also adds up the whole row and what lies above the window.
template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads)
    amounts_kernel(Call<T> c, const int* counts, const long long* searches,
                   unsigned long long* amounts) {
  using Amounts = Weighed<T>;
  using Reduce = cub::BlockReduce<Amounts, kSweepThreads>;
  __shared__ union {
    WindowStorage<kSweepThreads> window;
    typename Reduce::TempStorage weighed;
  } storage;
  __shared__ unsigned long long own[kBins];
  const std::int64_t row = c.row();
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) own[b] = 0;
  const Bins<T> bins = c.bins(row);
  const BinRange window = find_window<T, kSweepThreads>(counts + row * kBins, goal_of<T>(c.p), bins,
                                                        c.p.row_classes(), storage.window);
  // The window's barriers come after the zeros and before the first amount.
  const Keys<T> keys(c.p.ranking().dtype);
  const ClassWeight<T> amount = amount_of(c.p, bins.high, c.inv_temperature);
  const RadixSearch<T> search = c.search(searches, row);
  const int shift = search.bin_bits();
  const bool first = searches == nullptr;
  Amounts sums;
  sweep_ranks<T, kSweepThreads>(Source(c.p, row), c.slice(), c.p.by_student, [&](T r) {
    const int bin = bins.of(r);
    if (first) {
      const unsigned long long part = amount.of(r);
      sums.total += part;
      sums.above += bin < window.first ? part : 0;
    }
    if (window.holds(bin)) spread_key(search, shift, keys, amount, keys.of(r), own);
  });
  __syncthreads();  // all amounts are in, and the window's storage is read no more
  unsigned long long* to = amounts + row * kMsgHistogram;
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) {
    if (own[b] != 0) atomicAdd(&to[b], own[b]);
  }
  if (!first) return;  // the whole block
  const Amounts all = Reduce(storage.weighed).Reduce(sums, AddWeighed{});
  if (threadIdx.x != 0) return;
  atomicAdd(&to[kMsgTotal], all.total);
  atomicAdd(&to[kMsgAbove], all.above);
}

/// One block a row.
template <class T>
__global__ void __launch_bounds__(kSweepThreads)
    narrow_kernel(Call<T> c, const unsigned long long* amounts, const long long* searches,
                  long long* next, double* cut) {
  __shared__ NarrowStorage<kSweepThreads> storage;
  const std::int64_t row = blockIdx.x;
  const unsigned long long* own = amounts + row * kMsgHistogram;
  RadixSearch<T> search = c.search(searches, row);
  if (searches == nullptr) {
    search.above = own[kMsgAbove];
    search.total = own[kMsgTotal];
  }
  search = narrow_search<T, kSweepThreads>(own, goal_of<T>(c.p), search, storage);
  if (threadIdx.x != 0) return;
  search_to_message(search, next + row * kSearchFields);
  cut[row] = static_cast<double>(Keys<T>(c.p.ranking().dtype).logit(search.high));
}

template <class T>
Call<T> call_of(const Problem& p, const Device& device, const long long* extremes) {
  return {p, split_rows(p.rows, p.classes, device), extremes,
          static_cast<T>(1 / p.weights.temperature)};
}

/// run(call, tag) in the problem's arithmetic, with a null pointer of its Source.
template <class Run>
cudaError_t with_call(const Problem& p, const Device& device, const long long* extremes, Run run) {
  const auto in = [&](auto call) {
    using T = decltype(call.inv_temperature);
    return with_source_of<T>(p, [&](auto* tag) -> cudaError_t {
      run(call, tag);
      return cudaGetLastError();
    });
  };
  return p.wide() ? in(call_of<double>(p, device, extremes))
                  : in(call_of<float>(p, device, extremes));
}

unsigned blocks_of(std::int64_t rows) {
  return static_cast<unsigned>((rows + kSweepThreads - 1) / kSweepThreads);
}

unsigned long long* counters(long long* amounts) {
  return reinterpret_cast<unsigned long long*>(amounts);
}

}  // namespace

cudaError_t shard_extremes(const Problem& p, const Device& device, long long* extremes,
                           cudaStream_t stream) {
  return with_call(p, device, nullptr, [&](auto c, auto* tag) {
    using T = decltype(c.inv_temperature);
    using Source = std::remove_pointer_t<decltype(tag)>;
    no_extremes_kernel<T><<<blocks_of(p.rows), kSweepThreads, 0, stream>>>(p.rows, extremes);
    extremes_kernel<T, Source><<<c.blocks(), kSweepThreads, 0, stream>>>(c, extremes);
  });
}

cudaError_t shard_counts(const Problem& p, const Device& device, const long long* extremes,
                         std::int32_t* counts, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(p.rows) * kBins * sizeof(*counts);
  GKD_TRY(cudaMemsetAsync(counts, 0, bytes, stream));
  return with_call(p, device, extremes, [&](auto c, auto* tag) {
    using Source = std::remove_pointer_t<decltype(tag)>;
    count_kernel<decltype(c.inv_temperature), Source>
        <<<c.blocks(), kSweepThreads, 0, stream>>>(c, counts);
  });
}

cudaError_t shard_amounts(const Problem& p, const Device& device, const long long* extremes,
                          const std::int32_t* counts, const long long* search, long long* amounts,
                          cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(p.rows) * kMsgHistogram * sizeof(*amounts);
  GKD_TRY(cudaMemsetAsync(amounts, 0, bytes, stream));
  return with_call(p, device, extremes, [&](auto c, auto* tag) {
    using Source = std::remove_pointer_t<decltype(tag)>;
    amounts_kernel<decltype(c.inv_temperature), Source>
        <<<c.blocks(), kSweepThreads, 0, stream>>>(c, counts, search, counters(amounts));
  });
}

cudaError_t shard_narrow(const Problem& p, const long long* extremes, const long long* amounts,
                         const long long* search, long long* next, double* cut,
                         cudaStream_t stream) {
  return with_call(p, Device{}, extremes, [&](auto c, auto*) {
    narrow_kernel<decltype(c.inv_temperature)>
        <<<static_cast<unsigned>(p.rows), kSweepThreads, 0, stream>>>(
            c, reinterpret_cast<const unsigned long long*>(amounts), search, next, cut);
  });
}

}  // namespace gkd::cuda
