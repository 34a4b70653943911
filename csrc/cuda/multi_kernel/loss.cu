// The loss by several kernels: any row length, any architecture. A row's parts are summarised by as
// many blocks, one warp merges them into the row's constants, and as many blocks sweep again for
// the gradient. Two readings of both inputs, one writing.
#include "cuda/finish.cuh"
#include "cuda/stages.h"
#include "cuda/sweeps.cuh"

namespace gkd::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

__device__ __forceinline__ Slice slice_of(const Split& split, std::int64_t part,
                                          std::int64_t classes) {
  const std::int64_t begin = part * split.part_classes;
  const std::int64_t end = begin + split.part_classes;
  return {begin, end < classes ? end : classes};
}

template <class Source, class T>
__global__ void __launch_bounds__(kSweepThreads)
    moments_kernel(Problem p, Chunk chunk, const RowState<T>* state, PartMoments* moments,
                   T inv_temperature) {
  __shared__ MomentsStorage<T, kSweepThreads> storage;
  const std::int64_t row = chunk.first_row + blockIdx.x / chunk.split.parts;
  const std::int64_t part = blockIdx.x % chunk.split.parts;
  const RowState<T>& r = state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const PartMoments sum =
      summarise_slice<T, kSweepThreads>(Source(p, row), slice_of(chunk.split, part, p.classes),
                                        r.cut, r.target, p.by_student, inv_temperature, storage);
  if (threadIdx.x == 0) moments[blockIdx.x] = sum;
}

/// One warp a row.
template <class T>
__global__ void finish_kernel(Problem p, Chunk chunk, RowState<T>* state,
                              const PartMoments* moments, RowReport* report, const T* weight) {
  __shared__ FinishStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t local = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (local >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + local, parts = chunk.split.parts;
  RowReport result;
  if (state[row].kind == RowKind::kCounted) {
    result = finish_parts(
        p, [&](std::int64_t part) { return moments[local * parts + part]; }, parts,
        static_cast<double>(*weight), &state[row], storage[warp]);
  }
  if (threadIdx.x % kWarp == 0) report[row] = result;
}

template <class Source, class T>
__global__ void __launch_bounds__(kSweepThreads)
    emit_kernel(Problem p, Chunk chunk, const RowState<T>* state, PartKl* kl, bool all_kl,
                void* gradient, T inv_temperature) {
  __shared__ KlStorage<kSweepThreads> storage;
  const std::int64_t row = chunk.first_row + blockIdx.x / chunk.split.parts;
  const std::int64_t part = blockIdx.x % chunk.split.parts;
  const RowState<T>& r = state[row];
  const Slice slice = slice_of(chunk.split, part, p.classes);
  const Source source(p, row);
  PartKl sum{};
  if (r.kind == RowKind::kCounted) {
    sum = emit_slice<T, kSweepThreads>(source, slice, r, p.by_student, inv_temperature, all_kl,
                                       gradient, row * p.classes, storage);
  } else {
    const T value = r.kind == RowKind::kIgnored ? T(0) : std::numeric_limits<T>::quiet_NaN();
    fill_slice<T, kSweepThreads>(source, slice, value, gradient, row * p.classes);
  }
  if (threadIdx.x == 0) kl[blockIdx.x] = sum;
}

/// One warp a row: the KL sums of its parts, and the row's loss.
template <class T>
__global__ void rows_kernel(Problem p, Chunk chunk, const RowState<T>* state, const PartKl* kl,
                            RowReport* report) {
  using Reduce = cub::WarpReduce<PartKl>;
  __shared__ typename Reduce::TempStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t local = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (local >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + local, parts = chunk.split.parts;
  PartKl sum{};
  for (std::int64_t part = lane; part < parts; part += kWarp) {
    sum = AddKl{}(sum, kl[local * parts + part]);
  }
  sum = Reduce(storage[warp]).Reduce(sum, AddKl{});
  if (lane != 0) return;
  finalize_row(p, state[row].kind, sum, &report[row]);
}

unsigned blocks_of(std::int64_t rows, int rows_per_block) {
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

}  // namespace

template <class T>
cudaError_t accumulate_parts(const Problem& p, const Chunk& chunk, const Workspace<T>& w,
                             cudaStream_t stream) {
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  return with_source_of<T>(p, [&](auto* tag) -> cudaError_t {
    using Source = std::remove_pointer_t<decltype(tag)>;
    moments_kernel<Source, T><<<chunk.blocks(), kSweepThreads, 0, stream>>>(
        p, chunk, w.state, w.moments, inv_temperature);
    return cudaGetLastError();
  });
}

/// The last sweep over a chunk, and each row's report.
template <class T>
cudaError_t write_gradient_parts(const Problem& p, const Chunk& chunk, const Workspace<T>& w,
                                 bool all_kl, void* gradient, cudaStream_t stream) {
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  GKD_TRY(with_source_of<T>(p, [&](auto* tag) -> cudaError_t {
    using Source = std::remove_pointer_t<decltype(tag)>;
    emit_kernel<Source, T><<<chunk.blocks(), kSweepThreads, 0, stream>>>(
        p, chunk, w.state, w.kl, all_kl, gradient, inv_temperature);
    return cudaGetLastError();
  }));
  rows_kernel<T><<<blocks_of(chunk.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
      p, chunk, w.state, w.kl, w.report);
  return cudaGetLastError();
}

template <class T>
cudaError_t run_split(const Problem& p, const Chunk& chunk, const Workspace<T>& w, bool all_kl,
                      void* gradient, cudaStream_t stream) {
  GKD_TRY(accumulate_parts(p, chunk, w, stream));
  finish_kernel<T><<<blocks_of(chunk.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
      p, chunk, w.state, w.moments, w.report, w.weight);
  GKD_TRY(cudaGetLastError());
  return write_gradient_parts(p, chunk, w, all_kl, gradient, stream);
}

#define GKD_INSTANTIATE(T)                                                                        \
  template cudaError_t accumulate_parts<T>(const Problem&, const Chunk&, const Workspace<T>&,     \
                                           cudaStream_t);                                         \
  template cudaError_t write_gradient_parts<T>(const Problem&, const Chunk&, const Workspace<T>&, \
                                               bool, void*, cudaStream_t);                        \
  template cudaError_t run_split<T>(const Problem&, const Chunk&, const Workspace<T>&, bool,      \
                                    void*, cudaStream_t);
GKD_INSTANTIATE(float)
GKD_INSTANTIATE(double)
#undef GKD_INSTANTIATE

}  // namespace gkd::cuda
