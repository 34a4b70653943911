// The loss by several kernels: any row length, any architecture. One block per segment sums the
// moments, one warp per row merges them into the row's coefficients, and one block per segment
// writes the gradient. Both inputs are read twice, the gradient is written once.
#include "cuda/block/moments.cuh"
#include "cuda/block/passes.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/launch_kernel.cuh"
#include "cuda/multi_kernel/stages.h"

namespace gkd::cuda {
namespace {

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads) moments_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ MomentsStorage<T, kPassThreads> storage;
  const std::int64_t row = chunk.row(blockIdx.x);
  const RowState<T>& r = c.w.state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const SegmentMoments sums = accumulate_moments(Loader(c.p, row), chunk.segment(blockIdx.x), r.cut,
                                                 r.target, c.inv_temperature, storage);
  if (threadIdx.x == 0) c.w.moments[blockIdx.x] = sums;
}

/// One warp per row.
template <class T>
__global__ void coefficients_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const std::int64_t chunk_row = warp_row();
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, segments = chunk.partition.segments;
  RowReport result;
  if (c.w.state[row].kind == RowKind::kCounted) {
    result = merge_into_row(
        c.p, [&](std::int64_t k) { return c.w.moments[chunk_row * segments + k]; }, segments,
        static_cast<double>(*c.w.weight), &c.w.state[row], storage[threadIdx.x / kWarp]);
  }
  if (threadIdx.x % kWarp == 0) c.w.report[row] = result;
}

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads) gradient_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ KlStorage<kPassThreads> storage;
  const std::int64_t row = chunk.row(blockIdx.x), offset = row * c.p.classes;
  const Segment segment = chunk.segment(blockIdx.x);
  const RowState<T>& r = c.w.state[row];
  const Loader loader(c.p, row);
  SegmentKl sum{};
  if (r.kind == RowKind::kCounted) {
    sum = write_gradient<T, kPassThreads>(loader, segment, r, c.inv_temperature, c.all_kl,
                                          c.gradient, offset, storage);
  } else {
    fill_gradient<T, kPassThreads>(loader, segment, r.kind, c.gradient, offset);
  }
  if (threadIdx.x == 0) c.w.kl[blockIdx.x] = sum;
}

/// One warp per row: the KL sums of its segments, and the row's loss.
template <class T>
__global__ void finalize_kernel(RowsCall<T> c, Chunk chunk) {
  using Reduce = cub::WarpReduce<SegmentKl>;
  __shared__ typename Reduce::TempStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t chunk_row = warp_row();
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, segments = chunk.partition.segments;
  SegmentKl sum{};
  for (std::int64_t segment = lane; segment < segments; segment += kWarp) {
    sum.merge(c.w.kl[chunk_row * segments + segment]);
  }
  sum = Reduce(storage[warp]).Reduce(sum, Merge{});
  if (lane == 0) finalize_row(c.p, c.w.state[row].kind, sum, &c.w.report[row]);
}

}  // namespace

template <class T>
cudaError_t segment_moments(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  return with_loader<T>(c.p, [&](auto loader) {
    return launch_segments(moments_kernel<decltype(loader), T>, chunk, stream, c, chunk);
  });
}
GKD_INSTANTIATE(segment_moments)

template <class T>
cudaError_t write_gradients(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  GKD_TRY(with_loader<T>(c.p, [&](auto loader) {
    return launch_segments(gradient_kernel<decltype(loader), T>, chunk, stream, c, chunk);
  }));
  return launch_warps(finalize_kernel<T>, chunk.rows, stream, c, chunk);
}
GKD_INSTANTIATE(write_gradients)

template <class T>
cudaError_t run_loss(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  GKD_TRY(segment_moments(c, chunk, stream));
  GKD_TRY(launch_warps(coefficients_kernel<T>, chunk.rows, stream, c, chunk));
  return write_gradients(c, chunk, stream);
}
GKD_INSTANTIATE(run_loss)

}  // namespace gkd::cuda
