// Every row's cut by selection, as several kernels: any row length, any architecture. Reads the
// ranking logits three times, and once more per spread where the window does not fit its list; rows
// go through in chunks that stay in the L2 cache, so that device memory is read once.
#include <cub/block/block_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/select.cuh"
#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

/// One row's selection in progress. All zero to begin with: what starts high is kept inverted.
template <class T>
struct RowSearch {
  KeyOf<T> high_key, inverted_low_key;  ///< extremes as whole keys
  BinRange window;
  unsigned long long total, above;
  KeyOf<T> window_high, inverted_window_low;
  int kept;
  RadixSearch<T> search;

  __device__ RadixSearch<T> at_level(int level) const {
    return level > 0 ? search : RadixSearch<T>{window_high, ~inverted_window_low, above, total};
  }
};

/// Global scratch of a chunk, by row.
template <class T>
struct Scratch {
  RowSearch<T>* row;
  int* counts;                  ///< [kBins]
  unsigned long long* amounts;  ///< [kBins]
  KeyOf<T>* list;               ///< [capacity]
  int capacity;
};

/// What every kernel of the chunk takes.
template <class T>
struct Call {
  Problem p;
  Split split;
  std::int64_t first_row;
  RowState<T>* state;
  Scratch<T> scratch;
  T inv_temperature;

  __device__ std::int64_t local_row() const { return blockIdx.x / split.parts; }
  __device__ Slice slice() const {
    const std::int64_t begin = (blockIdx.x % split.parts) * split.part_classes;
    return {begin, min(begin + split.part_classes, p.classes)};
  }
  __device__ Extremes<T> extremes(const RowSearch<T>& row) const {
    const Keys<T> whole;
    return {whole.logit(row.high_key), whole.logit(~row.inverted_low_key)};
  }
  __device__ Bins<T> bins(const RowSearch<T>& row) const {
    return bins_of(p, extremes(row), inv_temperature);
  }
  __device__ bool counted(std::int64_t local) const {
    return state[first_row + local].kind == RowKind::kCounted;
  }
};

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) extremes_kernel(Call<T> c) {
  using Reduce = cub::BlockReduce<Extremes<T>, kSweepThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const std::int64_t local = c.local_row();
  const Extremes<T> own =
      extremes_of<T, kSweepThreads>(Source(c.p, c.first_row + local), c.slice(), c.p.by_student);
  const Extremes<T> all = Reduce(storage).Reduce(own, WidenExtremes{});
  if (threadIdx.x != 0) return;
  const Keys<T> whole;
  atomicMax(&c.scratch.row[local].high_key, whole.of(all.high));
  atomicMax(&c.scratch.row[local].inverted_low_key, ~whole.of(all.low));
}

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) count_kernel(Call<T> c) {
  __shared__ int counts[kBins];
  const std::int64_t local = c.local_row();
  if (!c.counted(local)) return;
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) counts[b] = 0;
  __syncthreads();  // all zero before the first count
  count_slice<T, kSweepThreads>(Source(c.p, c.first_row + local), c.slice(), c.p.by_student,
                                c.bins(c.scratch.row[local]), counts);
  __syncthreads();  // all counts are in
  int* to = c.scratch.counts + local * kBins;
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) {
    if (counts[b] != 0) atomicAdd(&to[b], counts[b]);
  }
}

/// One block a row.
template <class T>
__global__ void __launch_bounds__(kSweepThreads) window_kernel(Call<T> c) {
  __shared__ WindowStorage<kSweepThreads> storage;
  RowSearch<T>& row = c.scratch.row[blockIdx.x];
  const BinRange w =
      find_window<T, kSweepThreads>(c.scratch.counts + blockIdx.x * kBins, goal_of<T>(c.p),
                                    c.bins(row), c.p.row_classes(), storage);
  if (threadIdx.x == 0) row.window = w;
}

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) weigh_kernel(Call<T> c) {
  using Reduce = cub::BlockReduce<Weighed<T>, kSweepThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const std::int64_t local = c.local_row();
  if (!c.counted(local)) return;
  RowSearch<T>& row = c.scratch.row[local];
  const Bins<T> bins = c.bins(row);
  const Weighed<T> own = weigh_slice<T, kSweepThreads>(
      Source(c.p, c.first_row + local), c.slice(), c.p.by_student, bins,
      amount_of(c.p, bins.high, c.inv_temperature), Keys<T>(c.p.ranking().dtype), row.window,
      c.scratch.list + local * c.scratch.capacity, c.scratch.capacity, &row.kept);
  const Weighed<T> all = Reduce(storage).Reduce(own, AddWeighed{});
  if (threadIdx.x != 0) return;
  atomicAdd(&row.total, all.total);
  atomicAdd(&row.above, all.above);
  atomicMax(&row.window_high, all.high);
  atomicMax(&row.inverted_window_low, ~all.low);
}

template <class T, class Source>
__global__ void __launch_bounds__(kSweepThreads) spread_kernel(Call<T> c, int level) {
  __shared__ unsigned long long amounts[kBins];
  const std::int64_t local = c.local_row();
  if (!c.counted(local)) return;
  const RowSearch<T>& row = c.scratch.row[local];
  const RadixSearch<T> search = row.at_level(level);
  if (search.found()) return;
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) amounts[b] = 0;
  __syncthreads();  // all zero before the first amount
  const Keys<T> keys(c.p.ranking().dtype);
  const ClassWeight<T> amount = amount_of(c.p, c.extremes(row).high, c.inv_temperature);
  const int shift = search.bin_bits();
  if (row.kept <= c.scratch.capacity) {
    const KeyOf<T>* list = c.scratch.list + local * c.scratch.capacity;
    const std::int64_t part = blockIdx.x % c.split.parts;
    for (std::int64_t k = part * kSweepThreads + threadIdx.x; k < row.kept;
         k += c.split.parts * kSweepThreads) {
      spread_key(search, shift, keys, amount, list[k], amounts);
    }
  } else {
    sweep_ranks<T, kSweepThreads>(
        Source(c.p, c.first_row + local), c.slice(), c.p.by_student,
        [&](T r) { spread_key(search, shift, keys, amount, keys.of(r), amounts); });
  }
  __syncthreads();  // all amounts are in
  unsigned long long* to = c.scratch.amounts + local * kBins;
  for (int b = threadIdx.x; b < kBins; b += kSweepThreads) {
    if (amounts[b] != 0) atomicAdd(&to[b], amounts[b]);
  }
}

/// One block a row.
template <class T>
__global__ void __launch_bounds__(kSweepThreads) narrow_kernel(Call<T> c, int level) {
  __shared__ NarrowStorage<kSweepThreads> storage;
  const std::int64_t local = blockIdx.x;
  if (!c.counted(local)) return;
  RowSearch<T>& row = c.scratch.row[local];
  RadixSearch<T> search = row.at_level(level);
  if (search.found() && level > 0) return;
  if (!search.found()) {
    unsigned long long* amounts = c.scratch.amounts + local * kBins;
    StopRule goal = goal_of<T>(c.p);
    search = narrow_search<T, kSweepThreads>(amounts, goal, search, storage);
    for (int b = threadIdx.x; b < kBins; b += kSweepThreads) amounts[b] = 0;  // for the next level
  }
  if (threadIdx.x != 0) return;
  row.search = search;
  if (search.found()) {
    c.state[c.first_row + local].cut = Keys<T>(c.p.ranking().dtype).logit(search.high);
  }
}

template <class T>
Scratch<T> lay_out_scratch(const Problem& p, std::int64_t rows, void* base, std::size_t* bytes) {
  Arena arena(base);
  Scratch<T> s;
  const auto n = static_cast<std::size_t>(rows);
  s.capacity = static_cast<int>(std::min<std::int64_t>(
      kListLimit, std::max<std::int64_t>(kListLeast, p.classes / kListShare)));
  s.row = arena.take<RowSearch<T>>(n);
  s.counts = arena.take<int>(n * kBins);
  s.amounts = arena.take<unsigned long long>(n * kBins);
  *bytes = arena.used();  // what has to be zero
  s.list = arena.take<KeyOf<T>>(n * static_cast<std::size_t>(s.capacity));
  if (base == nullptr) *bytes = arena.used();
  return s;
}

}  // namespace

std::int64_t select_chunk_rows(const Problem& p) {
  auto row_bytes = [&](const Matrix& m) {
    return p.classes * (m.dtype == Dtype::kDouble ? 8 : m.dtype == Dtype::kFloat ? 4 : 2);
  };
  const std::int64_t row = row_bytes(p.student) + row_bytes(p.teacher);
  return std::clamp<std::int64_t>(kCacheBytes / row, 1, p.rows);
}

template <class T>
std::size_t select_scratch_bytes(const Problem& p, std::int64_t rows) {
  std::size_t bytes;
  lay_out_scratch<T>(p, rows, nullptr, &bytes);
  return bytes;
}

template <class T>
cudaError_t find_cuts_select(const Problem& p, const Chunk& chunk, RowState<T>* state,
                             void* scratch, cudaStream_t stream) {
  std::size_t zero_bytes;
  const Scratch<T> s = lay_out_scratch<T>(p, chunk.rows, scratch, &zero_bytes);
  const Call<T> c{p,     chunk.split, chunk.first_row,
                  state, s,           static_cast<T>(1 / p.weights.temperature)};
  GKD_TRY(cudaMemsetAsync(scratch, 0, zero_bytes, stream));
  const auto rows = static_cast<unsigned>(chunk.rows), parts = chunk.blocks();
  return with_source_of<T>(p, [&](auto* tag) -> cudaError_t {
    using Source = std::remove_pointer_t<decltype(tag)>;
    extremes_kernel<T, Source><<<parts, kSweepThreads, 0, stream>>>(c);
    GKD_TRY(cudaGetLastError());
    count_kernel<T, Source><<<parts, kSweepThreads, 0, stream>>>(c);
    GKD_TRY(cudaGetLastError());
    window_kernel<T><<<rows, kSweepThreads, 0, stream>>>(c);
    GKD_TRY(cudaGetLastError());
    weigh_kernel<T, Source><<<parts, kSweepThreads, 0, stream>>>(c);
    GKD_TRY(cudaGetLastError());
    const int num_passes = Keys<T>(p.ranking().dtype).num_passes();
    for (int level = 0; level < num_passes; ++level) {
      spread_kernel<T, Source><<<parts, kSweepThreads, 0, stream>>>(c, level);
      GKD_TRY(cudaGetLastError());
      narrow_kernel<T><<<rows, kSweepThreads, 0, stream>>>(c, level);
      GKD_TRY(cudaGetLastError());
    }
    return cudaSuccess;
  });
}

#define GKD_INSTANTIATE(T)                                                                    \
  template std::size_t select_scratch_bytes<T>(const Problem&, std::int64_t);                 \
  template cudaError_t find_cuts_select<T>(const Problem&, const Chunk&, RowState<T>*, void*, \
                                           cudaStream_t);
GKD_INSTANTIATE(float)
GKD_INSTANTIATE(double)
#undef GKD_INSTANTIATE

}  // namespace gkd::cuda
