// The loss by several kernels: any row length, any architecture. One block per segment sums the
// moments, one warp per row merges them into the row's coefficients, and one block per segment
// writes the gradient. Both inputs are read twice, the gradient is written once.
#include "cuda/block/cross_entropy.cuh"
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

template <class Loader, class T>
__global__ void __launch_bounds__(kPassThreads) others_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ OthersStorage<T, kPassThreads> storage;
  const std::int64_t row = chunk.row(blockIdx.x);
  const RowState<T>& r = c.w.state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const OtherSum sum = sum_others(Loader(c.p, row), chunk.segment(blockIdx.x), r.target,
                                  static_cast<T>(c.p.weights.scale), storage);
  if (threadIdx.x == 0) c.w.others[blockIdx.x] = sum;
}

/// One warp per row: its cross-entropy.
template <class T>
__global__ void head_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ OthersReduce::TempStorage storage[kWarpsPerBlock];
  const std::int64_t chunk_row = warp_row();
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, segments = chunk.partition.segments;
  const RowState<T>& r = c.w.state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole warp
  const OtherSum others =
      merge_others([&](std::int64_t k) { return c.w.others[chunk_row * segments + k]; }, segments,
                   c.p.weights.scale, storage[threadIdx.x / kWarp]);
  if (threadIdx.x % kWarp != 0) return;
  const double target = load_any<double>(c.p.student, row, r.target) - c.p.margin(row);
  set_head(c.p, cross_entropy(others, target, c.p.weights.scale), others.high,
           static_cast<double>(*c.w.weight), &c.w.head[row]);
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

template <class Loader, class T, bool kCrossEntropy>
__global__ void __launch_bounds__(kPassThreads) gradient_kernel(RowsCall<T> c, Chunk chunk) {
  __shared__ KlStorage<kPassThreads> storage;
  const std::int64_t row = chunk.row(blockIdx.x), offset = row * c.p.classes;
  const Segment segment = chunk.segment(blockIdx.x);
  const RowState<T>& r = c.w.state[row];
  const Loader loader(c.p, row);
  SegmentKl sum{};
  if (r.kind == RowKind::kCounted) {
    const T scale = static_cast<T>(c.p.weights.scale);
    const auto head = kCrossEntropy ? c.w.head[row].coef : CrossEntropyCoef<T>{};
    // A distillation of weight 0 has coefficients of 0, and is reported.
    const bool all_kl = c.all_kl || (c.p.head.is_on && c.p.all_weights().distillation == 0);
    sum = write_gradient<T, kPassThreads, kCrossEntropy>(
        loader, segment, r, c.inv_temperature, all_kl, c.gradient, offset, storage, head, scale);
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
  if (lane != 0) return;
  const RowKind kind = c.w.state[row].kind;
  finalize_row(c.p, kind, sum, &c.w.report[row]);
  if (c.p.head.is_on) finish_head(c.p, kind, &c.w.report[row], &c.w.head[row]);
}

}  // namespace

template <class T>
cudaError_t segment_moments(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  return with_loader<T>(c.p, [&](auto loader) -> cudaError_t {
    using Loader = decltype(loader);
    if (c.p.weights.cross_entropy != 0) {
      GKD_TRY(launch_segments(others_kernel<Loader, T>, chunk, stream, c, chunk));
    }
    return launch_segments(moments_kernel<Loader, T>, chunk, stream, c, chunk);
  });
}
GKD_INSTANTIATE(segment_moments)

template <class T>
cudaError_t finalize_rows(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  return launch_warps(finalize_kernel<T>, chunk.rows, stream, c, chunk);
}
GKD_INSTANTIATE(finalize_rows)

template <class T>
cudaError_t write_gradients(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  GKD_TRY(with_loader<T>(c.p, [&](auto loader) {
    using Loader = decltype(loader);
    const auto kernel = c.p.weights.cross_entropy != 0 ? &gradient_kernel<Loader, T, true>
                                                       : &gradient_kernel<Loader, T, false>;
    return launch_segments(kernel, chunk, stream, c, chunk);
  }));
  return finalize_rows(c, chunk, stream);
}
GKD_INSTANTIATE(write_gradients)

template <class T>
cudaError_t run_loss(const RowsCall<T>& c, const Chunk& chunk, cudaStream_t stream) {
  GKD_TRY(segment_moments(c, chunk, stream));
  if (c.p.weights.cross_entropy != 0) {
    GKD_TRY(launch_warps(head_kernel<T>, chunk.rows, stream, c, chunk));
  }
  GKD_TRY(launch_warps(coefficients_kernel<T>, chunk.rows, stream, c, chunk));
  return write_gradients(c, chunk, stream);
}
GKD_INSTANTIATE(run_loss)

}  // namespace gkd::cuda
