// Every row's cut by selection, as several kernels: any row length, any architecture. They read the
// ranking logits three times, and once more per radix pass where the window does not fit its list.
// Rows go through in chunks that stay in the L2 cache, so that device memory is read once.
#include "cuda/multi_kernel/select_kernels.cuh"
#include "cuda/multi_kernel/stages.h"

namespace gkd::cuda {
namespace {

/// One row's selection in progress. Zero-initialised: minima are stored bit-inverted, so that
/// atomicMax updates them.
template <class T>
struct RowSearch {
  KeyOf<T> high_key, inverted_low_key;  ///< extremes as whole keys
  int counts[kBins];
  BinRange window;
  unsigned long long total, above;
  KeyOf<T> window_high, inverted_window_low;
  int num_listed;
  unsigned long long histogram[kBins];
  RadixSearch<T> search;

  __device__ RadixSearch<T> before_pass(int pass) const {
    return pass > 0 ? search : RadixSearch<T>{window_high, ~inverted_window_low, above, total};
  }
};

/// Global scratch of a chunk, by row.
template <class T>
struct SelectScratch {
  RowSearch<T>* row;
  KeyOf<T>* list;  ///< [capacity]
  int capacity;
  std::size_t bytes;
};

template <class T>
struct ChunkCall : SelectCall<T> {
  RowState<T>* state;
  SelectScratch<T> scratch;
  bool keep_larger;  ///< of a cut that is there and the one found

  __device__ bool is_counted(std::int64_t row) const {
    return state[this->chunk.first_row + row].kind == RowKind::kCounted;
  }
  __device__ void merge_extremes(std::int64_t row, const Extremes<T>& e) const {
    const Keys<T> whole;
    atomicMax(&scratch.row[row].high_key, whole.of(e.high));
    atomicMax(&scratch.row[row].inverted_low_key, ~whole.of(e.low));
  }
  __device__ Extremes<T> extremes(std::int64_t row) const {
    const Keys<T> whole;
    return {whole.logit(scratch.row[row].high_key),
            whole.logit(~scratch.row[row].inverted_low_key)};
  }
  __device__ int* counts(std::int64_t row) const { return scratch.row[row].counts; }
  __device__ KeyOf<T>* list(std::int64_t row) const {
    return scratch.list + row * scratch.capacity;
  }
};

/// One block per row.
template <class T>
__global__ void __launch_bounds__(kPassThreads) window_kernel(ChunkCall<T> c) {
  __shared__ WindowStorage<kPassThreads> storage;
  const std::int64_t row = blockIdx.x;
  const BinRange window =
      find_window(c.counts(row), stop_rule(c.p.selection), BinMasses<kPassThreads>(bins_of(c, row)),
                  c.p.row_classes(), storage);
  if (threadIdx.x == 0) c.scratch.row[row].window = window;
}

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads) weights_kernel(ChunkCall<T> c) {
  using Reduce = cub::BlockReduce<WeightSums<T>, kPassThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const std::int64_t row = c.row();
  if (!c.is_counted(row)) return;  // the whole block: no barrier is left waiting
  RowSearch<T>& r = c.scratch.row[row];
  const Bins<T> bins = bins_of(c, row);
  const WeightSums<T> thread = weigh_segment<T, kPassThreads>(
      c.template loader<Loader>(), c.segment(), bins, class_weight(c.p, bins),
      Keys<T>(c.p.ranking_dtype()), r.window, c.list(row), c.scratch.capacity, &r.num_listed);
  const WeightSums<T> block = Reduce(storage).Reduce(thread, Merge{});
  if (threadIdx.x != 0) return;
  atomicAdd(&r.total, block.total);
  atomicAdd(&r.above, block.above);
  atomicMax(&r.window_high, block.high);
  atomicMax(&r.inverted_window_low, ~block.low);
}

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads) histogram_kernel(ChunkCall<T> c, int pass) {
  __shared__ unsigned long long histogram[kBins];
  const std::int64_t row = c.row();
  if (!c.is_counted(row)) return;  // the whole block: no barrier is left waiting
  RowSearch<T>& r = c.scratch.row[row];
  const RadixSearch<T> search = r.before_pass(pass);
  if (search.found()) return;  // the whole block
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) histogram[b] = 0;
  __syncthreads();  // all bins are zero before the first weight is added
  const Keys<T> keys(c.p.ranking_dtype());
  const ClassWeight<T> weight = class_weight(c.p, bins_of(c, row));
  const int shift = search.bin_bits();
  if (r.num_listed <= c.scratch.capacity) {
    const KeyOf<T>* list = c.list(row);
    const std::int64_t segments = c.chunk.partition.segments, segment = blockIdx.x % segments;
    for (std::int64_t k = segment * kPassThreads + threadIdx.x; k < r.num_listed;
         k += segments * kPassThreads) {
      add_to_histogram(search, shift, keys, weight, list[k], histogram);
    }
  } else {
    for_each_rank<T, kPassThreads>(c.template loader<Loader>(), c.segment(), [&](T r) {
      add_to_histogram(search, shift, keys, weight, keys.of(r), histogram);
    });
  }
  __syncthreads();  // every thread has added its classes
  for (int b = threadIdx.x; b < kBins; b += kPassThreads) {
    if (histogram[b] != 0) atomicAdd(&r.histogram[b], histogram[b]);
  }
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(kPassThreads) refine_kernel(ChunkCall<T> c, int pass) {
  __shared__ RefineStorage<kPassThreads> storage;
  const std::int64_t row = blockIdx.x;
  if (!c.is_counted(row)) return;  // the whole block: no barrier is left waiting
  RadixSearch<T> search = c.scratch.row[row].before_pass(pass);
  if (search.found() && pass > 0) return;
  if (!search.found()) {
    unsigned long long* histogram = c.scratch.row[row].histogram;
    search = refine_search(histogram, stop_rule(c.p.selection), search, storage);
    for (int b = threadIdx.x; b < kBins; b += kPassThreads) histogram[b] = 0;  // for the next pass
  }
  if (threadIdx.x != 0) return;
  c.scratch.row[row].search = search;
  if (search.found()) {
    const T found = Keys<T>(c.p.ranking_dtype()).logit(search.high);
    T& cut = c.state[c.chunk.first_row + row].cut;
    if (!(c.keep_larger && cut > found)) cut = found;
  }
}

template <class T>
SelectScratch<T> lay_out_scratch(const Problem& p, std::int64_t rows, void* base) {
  Arena arena(base);
  SelectScratch<T> s;
  const auto n = static_cast<std::size_t>(rows);
  s.capacity = static_cast<int>(std::min<std::int64_t>(
      kMaxListedKeys, std::max<std::int64_t>(kMinListedKeys, p.classes / kClassesPerListedKey)));
  s.row = arena.take<RowSearch<T>>(n);
  s.list = arena.take<KeyOf<T>>(n * static_cast<std::size_t>(s.capacity));
  s.bytes = arena.used();
  return s;
}

}  // namespace

std::int64_t select_chunk_rows(const Problem& p) {
  const std::int64_t row_bytes =
      p.classes * (element_size(p.student.dtype) + element_size(p.teacher.dtype));
  return std::clamp<std::int64_t>(kCacheBytes / row_bytes, 1, p.rows);
}

template <class T>
std::size_t select_scratch_bytes(const Problem& p, std::int64_t rows) {
  return lay_out_scratch<T>(p, rows, nullptr).bytes;
}
GKD_INSTANTIATE(select_scratch_bytes)

template <class T>
cudaError_t find_cuts_select(const Problem& p, const Chunk& chunk, bool keep_larger,
                             const Workspace<T>& w, cudaStream_t stream) {
  using Call = ChunkCall<T>;
  const auto scratch = lay_out_scratch<T>(p, chunk.rows, w.selection);
  const Call c{{p, chunk, p.inv_group_temperature<T>()}, w.state, scratch, keep_larger};
  GKD_TRY(cudaMemsetAsync(scratch.row, 0, chunk.rows * sizeof(*scratch.row), stream));
  return with_loader<T>(p, [&](auto loader) -> cudaError_t {
    using Loader = decltype(loader);
    GKD_TRY(launch_segments(extremes_kernel<Loader, Call>, chunk, stream, c));
    GKD_TRY(launch_segments(count_kernel<Loader, Call>, chunk, stream, c));
    GKD_TRY(launch(window_kernel<T>, chunk.rows, kPassThreads, stream, c));
    GKD_TRY(launch_segments(weights_kernel<Loader, T>, chunk, stream, c));
    const int num_passes = Keys<T>(p.ranking_dtype()).num_passes();
    for (int pass = 0; pass < num_passes; ++pass) {
      GKD_TRY(launch_segments(histogram_kernel<Loader, T>, chunk, stream, c, pass));
      GKD_TRY(launch(refine_kernel<T>, chunk.rows, kPassThreads, stream, c, pass));
    }
    return cudaSuccess;
  });
}
GKD_INSTANTIATE(find_cuts_select)

}  // namespace gkd::cuda
