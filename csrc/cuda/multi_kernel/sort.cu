// Every row's cut by sorting: ordered keys, a CUB sort of the keys alone, and a scan of the sorted
// masses until the threshold is met. Rows go through in chunks, so that scratch stays bounded.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_sort.cuh>

#include "cuda/cub.h"
#include "cuda/row.cuh"
#include "cuda/stages.h"
#include "math/cut.h"

namespace gkd::cuda {
namespace {

template <class Key>
__device__ __forceinline__ Key infinity_bits(Dtype dtype) {
  switch (dtype) {
    case Dtype::kHalf:
      return static_cast<Key>(0x7c00u);
    case Dtype::kBFloat16:
      return static_cast<Key>(0x7f80u);
    case Dtype::kFloat:
      return static_cast<Key>(0x7f800000u);
    default:
      return static_cast<Key>(0x7ff0000000000000ull);
  }
}

/// The ranking logit behind a key.
template <class T, class Key>
__device__ __forceinline__ T logit_of(Key key, Dtype dtype) {
  const Key bits = key_to_bits(key);
  if constexpr (sizeof(Key) == 2) {
    const auto raw = static_cast<unsigned short>(bits);
    return dtype == Dtype::kHalf ? widen<T>(__ushort_as_half(raw))
                                 : widen<T>(__ushort_as_bfloat16(raw));
  } else if constexpr (sizeof(Key) == 4) {
    return widen<T>(__uint_as_float(bits));
  } else {
    return widen<T>(__longlong_as_double(static_cast<long long>(bits)));
  }
}

template <class Key>
__global__ void __launch_bounds__(kSweepThreads)
    keys_kernel(Matrix ranking, std::int64_t classes, Chunk chunk, Key* keys) {
  const Split split = chunk.split;
  const std::int64_t chunk_row = blockIdx.x / split.parts, part = blockIdx.x % split.parts;
  const Key* row =
      static_cast<const Key*>(ranking.data) + (chunk.first_row + chunk_row) * ranking.row_stride;
  const Key infinity = infinity_bits<Key>(ranking.dtype);
  const std::int64_t begin = part * split.part_classes;
  const std::int64_t end = min(begin + split.part_classes, classes);
  for (std::int64_t j = begin + threadIdx.x; j < end; j += kSweepThreads) {
    keys[chunk_row * classes + j] = ordered_key(row[j * ranking.col_stride], infinity);
  }
}

/// One block a row over its keys in descending order.
template <class T, class Key>
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(Problem p, std::int64_t first_row, const Key* sorted, RowState<T>* state) {
  using Reduce = cub::BlockReduce<unsigned long long, kScanThreads>;
  using Scan = cub::BlockScan<unsigned long long, kScanThreads>;
  __shared__ union {
    typename Reduce::TempStorage reduce;
    typename Scan::TempStorage scan;
  } storage;
  __shared__ unsigned long long total;
  __shared__ unsigned long long crossing;
  constexpr int kTileKeys = kScanThreads * kScanItems;
  const Key* keys = sorted + std::int64_t(blockIdx.x) * p.classes;
  const Dtype dtype = p.ranking().dtype;
  T* cut = &state[first_row + blockIdx.x].cut;
  if (p.group_size > 0) {
    if (threadIdx.x == 0) *cut = logit_of<T>(keys[p.group_size - 1], dtype);
    return;
  }
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T high = logit_of<T>(keys[0], dtype),
          inv_temperature = static_cast<T>(1 / p.weights.temperature);
  if (!(high < kInfinity) || high == -kInfinity) {  // the row is NaN, whatever its cut
    if (threadIdx.x == 0) *cut = kInfinity;
    return;
  }
  const T scale = static_cast<T>(mass_scale(p.classes));
  auto mass = [&](std::int64_t j) -> unsigned long long {
    if (j >= p.classes) return 0;
    return fixed_mass(exp_of((logit_of<T>(keys[j], dtype) - high) * inv_temperature), scale);
  };

  unsigned long long own = 0;
  for (std::int64_t j = threadIdx.x; j < p.classes; j += kScanThreads) {
    const unsigned long long m = mass(j);
    if (m == 0) break;  // and so is every later one
    own += m;
  }
  const unsigned long long sum = Reduce(storage.reduce).Sum(own);
  if (threadIdx.x == 0) {
    total = sum;
    crossing = ~0ull;
  }
  __syncthreads();  // total and crossing are written; the reduction's memory becomes the scan's

  unsigned long long before = 0;
  for (std::int64_t first = 0; first < p.classes; first += kTileKeys) {
    unsigned long long through[kScanItems], tile_mass;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      through[k] = mass(first + std::int64_t(threadIdx.x) * kScanItems + k);
    }
    Scan(storage.scan).InclusiveSum(through, through, tile_mass);
#pragma unroll
    for (int k = kScanItems - 1; k >= 0; --k) {
      const std::int64_t j = first + std::int64_t(threadIdx.x) * kScanItems + k;
      if (j < p.classes && mass_reached(before + through[k], total, p.threshold)) {
        atomicMin(&crossing, static_cast<unsigned long long>(j));
      }
    }
    before += tile_mass;
    __syncthreads();  // every thread's candidate is in, and the scan's memory is free again
    if (crossing != ~0ull) break;
  }
  if (threadIdx.x == 0) *cut = logit_of<T>(keys[crossing], dtype);
}

template <class T>
__global__ void constant_cut_kernel(std::int64_t rows, RowState<T>* state, T cut) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < rows) state[row].cut = cut;
}

/// Offset of a chunk's row in its keys.
struct RowOffset {
  std::int64_t classes;
  __host__ __device__ std::int64_t operator()(std::int64_t row) const { return row * classes; }
};

bool sorts_whole_rows(std::int64_t classes) { return classes >= kDeviceSortClasses; }

/// CUB's scratch for one sort of `rows` rows, or the sort itself.
template <class Key>
cudaError_t sort_keys(void* scratch, std::size_t& bytes, const Key* keys, Key* sorted,
                      std::int64_t rows, std::int64_t classes, cudaStream_t stream) {
  if (sorts_whole_rows(classes)) {
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

/// The pieces of a chunk's scratch.
struct Pieces {
  std::size_t key_bytes, cub_bytes;
};

template <class Key>
Pieces pieces_of(const Problem& p, std::int64_t rows) {
  Pieces pieces;
  pieces.key_bytes = (static_cast<std::size_t>(rows * p.classes) * sizeof(Key) + 255) / 256 * 256;
  pieces.cub_bytes = 0;
  Key* none = nullptr;
  sort_keys<Key>(nullptr, pieces.cub_bytes, none, none, rows, p.classes, nullptr);
  return pieces;
}

template <class T, class Key>
cudaError_t find_cuts(const Problem& p, const Chunk& chunk, RowState<T>* state, void* scratch,
                      cudaStream_t stream) {
  Pieces pieces = pieces_of<Key>(p, chunk.rows);
  Key* keys = static_cast<Key*>(scratch);
  Key* sorted = keys + pieces.key_bytes / sizeof(Key);
  void* cub_scratch = static_cast<char*>(scratch) + 2 * pieces.key_bytes;
  keys_kernel<Key>
      <<<chunk.blocks(), kSweepThreads, 0, stream>>>(p.ranking(), p.classes, chunk, keys);
  GKD_TRY(cudaGetLastError());
  GKD_TRY(
      sort_keys<Key>(cub_scratch, pieces.cub_bytes, keys, sorted, chunk.rows, p.classes, stream));
  scan_kernel<T, Key><<<static_cast<unsigned>(chunk.rows), kScanThreads, 0, stream>>>(
      p, chunk.first_row, sorted, state);
  return cudaGetLastError();
}

/// Calls run(key) with a key as wide as the ranking logits.
template <class Run>
auto with_key(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::kDouble:
      return run(std::uint64_t(0));
    case Dtype::kFloat:
      return run(std::uint32_t(0));
    default:
      return run(std::uint16_t(0));
  }
}

}  // namespace

std::int64_t sort_chunk_rows(const Problem& p) {
  return with_key(p.ranking().dtype, [&](auto key) {
    // Keys, sorted keys, and as much again for CUB's double buffer.
    const std::size_t row_bytes = 3 * static_cast<std::size_t>(p.classes) * sizeof(key);
    const auto fitting = static_cast<std::int64_t>(kSortScratch / row_bytes);
    return std::clamp<std::int64_t>(fitting, 1, std::min(p.rows, kSortSegments));
  });
}

std::size_t sort_scratch_bytes(const Problem& p, std::int64_t rows) {
  return with_key(p.ranking().dtype, [&](auto key) {
    const Pieces pieces = pieces_of<decltype(key)>(p, rows);
    return 2 * pieces.key_bytes + pieces.cub_bytes;
  });
}

template <class T>
cudaError_t find_cuts_sort(const Problem& p, const Chunk& chunk, RowState<T>* state, void* scratch,
                           cudaStream_t stream) {
  return with_key(p.ranking().dtype, [&](auto key) -> cudaError_t {
    using Key = decltype(key);
    if constexpr (sizeof(Key) > sizeof(T)) {
      return cudaErrorInvalidValue;  // a double ranking makes the arithmetic double
    } else {
      return find_cuts<T, Key>(p, chunk, state, scratch, stream);
    }
  });
}

template <class T>
cudaError_t fill_cuts(const Problem& p, RowState<T>* state, T cut, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((p.rows + kSweepThreads - 1) / kSweepThreads);
  constant_cut_kernel<T><<<blocks, kSweepThreads, 0, stream>>>(p.rows, state, cut);
  return cudaGetLastError();
}

#define GKD_INSTANTIATE(T)                                                                  \
  template cudaError_t find_cuts_sort<T>(const Problem&, const Chunk&, RowState<T>*, void*, \
                                         cudaStream_t);                                     \
  template cudaError_t fill_cuts<T>(const Problem&, RowState<T>*, T, cudaStream_t);
GKD_INSTANTIATE(float)
GKD_INSTANTIATE(double)
#undef GKD_INSTANTIATE

}  // namespace gkd::cuda
