// Every row's cut by sorting: ordered keys, a CUB sort of the keys alone, and a scan of the sorted
// masses until the threshold is met. Rows go through in chunks, which bounds the scratch.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_sort.cuh>

#include "cuda/block/histogram.cuh"
#include "cuda/cub.h"
#include "cuda/launch_kernel.cuh"
#include "cuda/multi_kernel/stages.h"
#include "math/cut.h"

namespace gkd::cuda {
namespace {

/// A key has the width of the ranking logits.
template <class Elem>
using SortKey =
    std::conditional_t<sizeof(Elem) == 2, std::uint16_t,
                       std::conditional_t<sizeof(Elem) == 4, std::uint32_t, std::uint64_t>>;

/// The ranking logit of a key.
template <class T, class Elem>
__device__ __forceinline__ T logit_of(SortKey<Elem> key) {
  const SortKey<Elem> bits = key_to_bits(key);
  Elem logit;
  memcpy(&logit, &bits, sizeof(Elem));
  return load_as<T>(logit);
}

template <class Elem>
__global__ void __launch_bounds__(kPassThreads)
    keys_kernel(Matrix ranking, std::int64_t classes, Chunk chunk, SortKey<Elem>* keys) {
  using Key = SortKey<Elem>;
  const std::int64_t chunk_row = chunk.partition.row(blockIdx.x);
  const Segment segment = chunk.segment(blockIdx.x);
  const Key* row =
      static_cast<const Key*>(ranking.data) + chunk.row(blockIdx.x) * ranking.row_stride;
  const auto infinity = static_cast<Key>(infinity_bits(ranking.dtype));
  for (std::int64_t j = segment.begin + threadIdx.x; j < segment.end; j += kPassThreads) {
    keys[chunk_row * classes + j] = ordered_key(row[j * ranking.col_stride], infinity);
  }
}

/// One block per row, over its keys in descending order.
template <class T, class Elem>
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(Problem p, std::int64_t first_row, const SortKey<Elem>* sorted, bool keep_larger,
                RowState<T>* state) {
  using Reduce = cub::BlockReduce<unsigned long long, kScanThreads>;
  using Scan = cub::BlockScan<unsigned long long, kScanThreads>;
  __shared__ union {
    typename Reduce::TempStorage reduce;
    typename Scan::TempStorage scan;
  } storage;
  __shared__ unsigned long long total;
  __shared__ unsigned long long crossing;
  constexpr int kTileKeys = kScanThreads * kScanItems;
  const SortKey<Elem>* keys = sorted + std::int64_t(blockIdx.x) * p.classes;
  const auto set_cut = [&](T found) {
    T* cut = &state[first_row + blockIdx.x].cut;
    if (threadIdx.x == 0 && !(keep_larger && *cut > found)) *cut = found;
  };
  if (p.selection.group_size > 0) {
    set_cut(logit_of<T, Elem>(keys[p.selection.group_size - 1]));
    return;
  }
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T high = logit_of<T, Elem>(keys[0]),
          inv_temperature = p.template inv_group_temperature<T>();
  if (!(high < kInfinity) || high == -kInfinity) {  // the row's loss is NaN for any cut
    set_cut(kInfinity);
    return;
  }
  const ClassWeight<T> weight = class_weight(p, high, inv_temperature);  // as selection weighs
  auto mass = [&](std::int64_t j) -> unsigned long long {
    return j < p.classes ? weight.of(logit_of<T, Elem>(keys[j])) : 0;
  };

  unsigned long long thread_mass = 0;
  for (std::int64_t j = threadIdx.x; j < p.classes; j += kScanThreads) {
    const unsigned long long m = mass(j);
    if (m == 0) break;  // every later mass is 0 too
    thread_mass += m;
  }
  const unsigned long long row_mass = Reduce(storage.reduce).Sum(thread_mass);
  if (threadIdx.x == 0) {
    total = row_mass;
    crossing = ~0ull;
  }
  __syncthreads();  // total and crossing are written; the scan reuses the reduction's memory

  unsigned long long before = 0;
  for (std::int64_t first = 0; first < p.classes; first += kTileKeys) {
    unsigned long long prefix[kScanItems], tile_mass;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      prefix[k] = mass(first + std::int64_t(threadIdx.x) * kScanItems + k);
    }
    Scan(storage.scan).InclusiveSum(prefix, prefix, tile_mass);
#pragma unroll
    for (int k = kScanItems - 1; k >= 0; --k) {
      const std::int64_t j = first + std::int64_t(threadIdx.x) * kScanItems + k;
      if (j < p.classes && mass_reached(before + prefix[k], total, p.selection.threshold)) {
        atomicMin(&crossing, static_cast<unsigned long long>(j));
      }
    }
    before += tile_mass;
    __syncthreads();  // every thread's candidate is in, and the scan's memory is free again
    if (crossing != ~0ull) break;
  }
  set_cut(logit_of<T, Elem>(keys[crossing]));
}

/// Offset of a chunk's row in its keys.
struct RowOffset {
  std::int64_t classes;
  __host__ __device__ std::int64_t operator()(std::int64_t row) const { return row * classes; }
};

/// With null scratch, CUB's scratch bytes for sorting `rows` rows; else the sort.
template <class Key>
cudaError_t sort_keys(void* scratch, std::size_t& bytes, const Key* keys, Key* sorted,
                      std::int64_t rows, std::int64_t classes, cudaStream_t stream) {
  if (classes >= kDeviceSortClasses) {
    const std::int64_t sorts = scratch == nullptr ? 1 : rows;
    for (std::int64_t row = 0; row < sorts; ++row) {
      GKD_TRY(cub::DeviceRadixSort::SortKeysDescending(scratch, bytes, keys + row * classes,
                                                       sorted + row * classes, classes, 0,
                                                       int(sizeof(Key) * 8), stream));
    }
    return cudaSuccess;
  }
  const auto begins = thrust::make_transform_iterator(thrust::counting_iterator<std::int64_t>(0),
                                                      RowOffset{classes});
  return cub::DeviceSegmentedSort::SortKeysDescending(scratch, bytes, keys, sorted, rows * classes,
                                                      rows, begins, begins + 1, stream);
}

/// A chunk's scratch.
template <class Key>
struct SortScratch {
  Key *keys, *sorted;
  void* cub;
  std::size_t cub_bytes, bytes;
};

template <class Key>
SortScratch<Key> lay_out_scratch(const Problem& p, std::int64_t rows, void* base) {
  Arena arena(base);
  SortScratch<Key> s;
  const auto count = static_cast<std::size_t>(rows * p.classes);
  s.keys = arena.take<Key>(count);
  s.sorted = arena.take<Key>(count);
  s.cub_bytes = 0;
  sort_keys<Key>(nullptr, s.cub_bytes, s.keys, s.sorted, rows, p.classes, nullptr);
  s.cub = arena.take<char>(s.cub_bytes);
  s.bytes = arena.used();
  return s;
}

}  // namespace

std::int64_t sort_chunk_rows(const Problem& p) {
  return with_dtype(p.ranking().dtype, [&](auto elem) {
    // Keys, sorted keys, and as much again for CUB's double buffer.
    const std::size_t row_bytes = 3 * static_cast<std::size_t>(p.classes) * sizeof(elem);
    const auto rows_that_fit = static_cast<std::int64_t>(kSortScratch / row_bytes);
    return std::clamp<std::int64_t>(rows_that_fit, 1, std::min(p.rows, kSortSegments));
  });
}

std::size_t sort_scratch_bytes(const Problem& p, std::int64_t rows) {
  return with_dtype(p.ranking().dtype, [&](auto elem) {
    return lay_out_scratch<SortKey<decltype(elem)>>(p, rows, nullptr).bytes;
  });
}

template <class T>
cudaError_t find_cuts_sort(const Problem& p, const Chunk& chunk, bool keep_larger,
                           const Workspace<T>& w, cudaStream_t stream) {
  return with_dtype(p.ranking().dtype, [&](auto elem) -> cudaError_t {
    using Elem = decltype(elem);
    if constexpr (sizeof(Elem) > sizeof(T)) {
      return cudaErrorInvalidValue;  // a double ranking makes the arithmetic double
    } else {
      auto s = lay_out_scratch<SortKey<Elem>>(p, chunk.rows, w.selection);
      GKD_TRY(
          launch_segments(keys_kernel<Elem>, chunk, stream, p.ranking(), p.classes, chunk, s.keys));
      GKD_TRY(sort_keys(s.cub, s.cub_bytes, s.keys, s.sorted, chunk.rows, p.classes, stream));
      return launch(scan_kernel<T, Elem>, chunk.rows, kScanThreads, stream, p, chunk.first_row,
                    s.sorted, keep_larger, w.state);
    }
  });
}
GKD_INSTANTIATE(find_cuts_sort)

}  // namespace gkd::cuda
