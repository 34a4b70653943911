// The loss by several kernels: any row length, any architecture. One block per segment sums the
// moments, one warp per row merges them into the row's coefficients, and one block per segment
// writes the gradient. Both inputs are read twice, the gradient is written once.
#include "cuda/block/moments.cuh"
#include "cuda/block/passes.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/multi_kernel/stages.h"

namespace gkd::cuda {
namespace {

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads)
    moments_kernel(Problem p, Chunk chunk, const RowState<T>* state, SegmentMoments* moments,
                   T inv_temperature) {
  __shared__ MomentsStorage<T, kPassThreads> storage;
  const std::int64_t row = chunk.first_row + chunk.partition.row(blockIdx.x);
  const RowState<T>& r = state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const SegmentMoments sums =
      accumulate_moments<T, kPassThreads>(Loader(p, row), chunk.partition.segment(blockIdx.x),
                                          r.cut, r.target, p.by_student, inv_temperature, storage);
  if (threadIdx.x == 0) moments[blockIdx.x] = sums;
}

/// One warp per row.
template <class T>
__global__ void coefficients_kernel(Problem p, Chunk chunk, RowState<T>* state,
                                    const SegmentMoments* moments, RowReport* report,
                                    const T* weight) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t chunk_row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, segments = chunk.partition.segments;
  RowReport result;
  if (state[row].kind == RowKind::kCounted) {
    result = merge_into_row(
        p, [&](std::int64_t segment) { return moments[chunk_row * segments + segment]; }, segments,
        static_cast<double>(*weight), &state[row], storage[warp]);
  }
  if (threadIdx.x % kWarp == 0) report[row] = result;
}

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads)
    gradient_kernel(Problem p, Chunk chunk, const RowState<T>* state, SegmentKl* kl, bool all_kl,
                    void* gradient, T inv_temperature) {
  __shared__ KlStorage<kPassThreads> storage;
  const std::int64_t row = chunk.first_row + chunk.partition.row(blockIdx.x);
  const Segment segment = chunk.partition.segment(blockIdx.x);
  const RowState<T>& r = state[row];
  const Loader loader(p, row);
  SegmentKl sum{};
  if (r.kind == RowKind::kCounted) {
    sum = write_gradient<T, kPassThreads>(loader, segment, r, p.by_student, inv_temperature, all_kl,
                                          gradient, row * p.classes, storage);
  } else {
    fill_gradient<T, kPassThreads>(loader, segment, r.kind, gradient, row * p.classes);
  }
  if (threadIdx.x == 0) kl[blockIdx.x] = sum;
}

/// One warp per row: the KL sums of its segments, and the row's loss.
template <class T>
__global__ void finalize_kernel(Problem p, Chunk chunk, const RowState<T>* state,
                                const SegmentKl* kl, RowReport* report) {
  using Reduce = cub::WarpReduce<SegmentKl>;
  __shared__ typename Reduce::TempStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t chunk_row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, segments = chunk.partition.segments;
  SegmentKl sum{};
  for (std::int64_t segment = lane; segment < segments; segment += kWarp) {
    sum = AddKl{}(sum, kl[chunk_row * segments + segment]);
  }
  sum = Reduce(storage[warp]).Reduce(sum, AddKl{});
  if (lane == 0) finalize_row(p, state[row].kind, sum, &report[row]);
}

}  // namespace

template <class T>
cudaError_t segment_moments(const Problem& p, const Chunk& chunk, const Workspace<T>& w,
                            cudaStream_t stream) {
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  return with_loader<T>(p, [&](auto* tag) -> cudaError_t {
    using Loader = std::remove_pointer_t<decltype(tag)>;
    moments_kernel<Loader, T><<<chunk.blocks(), kPassThreads, 0, stream>>>(
        p, chunk, w.state, w.moments, inv_temperature);
    return cudaGetLastError();
  });
}

template <class T>
cudaError_t write_gradients(const Problem& p, const Chunk& chunk, const Workspace<T>& w,
                            bool all_kl, void* gradient, cudaStream_t stream) {
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  GKD_TRY(with_loader<T>(p, [&](auto* tag) -> cudaError_t {
    using Loader = std::remove_pointer_t<decltype(tag)>;
    gradient_kernel<Loader, T><<<chunk.blocks(), kPassThreads, 0, stream>>>(
        p, chunk, w.state, w.kl, all_kl, gradient, inv_temperature);
    return cudaGetLastError();
  }));
  finalize_kernel<T><<<num_blocks(chunk.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
      p, chunk, w.state, w.kl, w.report);
  return cudaGetLastError();
}

template <class T>
cudaError_t run_loss(const Problem& p, const Chunk& chunk, const Workspace<T>& w, bool all_kl,
                     void* gradient, cudaStream_t stream) {
  GKD_TRY(segment_moments(p, chunk, w, stream));
  coefficients_kernel<T>
      <<<num_blocks(chunk.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
          p, chunk, w.state, w.moments, w.report, w.weight);
  GKD_TRY(cudaGetLastError());
  return write_gradients(p, chunk, w, all_kl, gradient, stream);
}

#define GKD_INSTANTIATE(T)                                                                         \
  template cudaError_t segment_moments<T>(const Problem&, const Chunk&, const Workspace<T>&,       \
                                          cudaStream_t);                                           \
  template cudaError_t write_gradients<T>(const Problem&, const Chunk&, const Workspace<T>&, bool, \
                                          void*, cudaStream_t);                                    \
  template cudaError_t run_loss<T>(const Problem&, const Chunk&, const Workspace<T>&, bool, void*, \
                                   cudaStream_t);
GKD_INSTANTIATE(float)
GKD_INSTANTIATE(double)
#undef GKD_INSTANTIATE

}  // namespace gkd::cuda
