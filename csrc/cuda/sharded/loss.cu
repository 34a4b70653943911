// The loss of rows whose classes are sharded over ranks: the passes of multi_kernel/loss.cu over
// this rank's classes, with all ranks' moments in between.
#include "cuda/block/cross_entropy.cuh"
#include "cuda/block/passes.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/launch_kernel.cuh"
#include "cuda/multi_kernel/stages.h"
#include "cuda/row_ops.h"
#include "cuda/sharded/launch.h"
#include "cuda/sharded/messages.cuh"

namespace gkd::cuda {
namespace {

template <class T>
__global__ void set_cuts_kernel(std::int64_t rows, const double* cut, RowState<T>* state) {
  const std::int64_t row = thread_row();
  if (row < rows) state[row].cut = static_cast<T>(cut[row]);
}

/// One warp per row: the moments of its segments, merged into one message.
template <class T>
__global__ void moments_message_kernel(RowsCall<T> c, std::int64_t segments, double* messages) {
  __shared__ OthersReduce::TempStorage others_storage[kWarpsPerBlock];
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const std::int64_t row = warp_row();
  if (row >= c.p.rows) return;
  const RowKind kind = c.w.state[row].kind;
  SegmentMoments shard{};
  if (kind == RowKind::kCounted) {
    shard = merge_moments(
        c.p, [&](std::int64_t segment) { return c.w.moments[row * segments + segment]; }, segments,
        storage[threadIdx.x / kWarp]);
  }
  const bool has_head = c.p.weights.cross_entropy != 0;
  OtherSum others;
  if (has_head && kind == RowKind::kCounted) {
    others =
        merge_others([&](std::int64_t segment) { return c.w.others[row * segments + segment]; },
                     segments, c.p.weights.scale, others_storage[threadIdx.x / kWarp]);
  }
  if (threadIdx.x % kWarp != 0) return;
  write_message(c, row, shard, others, messages + row * message_width(c.p));
}

/// One warp per row: all ranks' moments to the row's coefficients.
template <class T>
__global__ void shard_coefficients_kernel(RowsCall<T> c, std::int64_t ranks,
                                          const double* moments) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const std::int64_t row = warp_row();
  if (row >= c.p.rows) return;
  const std::int64_t width = message_width(c.p);
  RowReport result;
  if (c.w.state[row].kind == RowKind::kCounted) {
    if (c.p.weights.cross_entropy != 0 && threadIdx.x % kWarp == 0) {
      OtherSum others;
      const CrossEntropy head = cross_entropy_from_messages(
          moments + row * width, ranks, c.p.rows * width, c.p.weights.scale, &others);
      set_head(c.p, head, others.high, static_cast<double>(*c.w.weight), &c.w.head[row]);
    }
    result = merge_into_row(
        c.p,
        [&](std::int64_t rank) {
          return shard_from_message(moments + (rank * c.p.rows + row) * width);
        },
        ranks, static_cast<double>(*c.w.weight), &c.w.state[row], storage[threadIdx.x / kWarp]);
  }
  if (threadIdx.x % kWarp == 0) c.w.report[row] = result;
}

template <class T>
__global__ void finalize_shard_kernel(RowsCall<T> c, std::int64_t ranks, const double* kl) {
  const std::int64_t row = thread_row();
  if (row >= c.p.rows) return;
  SegmentKl sum{};
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const double* shard = kl + (rank * c.p.rows + row) * 2;
    sum.merge({{shard[0], shard[1]}});
  }
  const RowKind kind = c.w.state[row].kind;
  finalize_row(c.p, kind, sum, &c.w.report[row]);
  if (c.p.head.is_on) finish_head(c.p, kind, &c.w.report[row], &c.w.head[row]);
}

/// Calls run(rows_call) in the problem's arithmetic, when every row's kind and target and, unless
/// `cut` is null, its cut are in place.
template <class Run>
cudaError_t with_rows(const Call& call, const double* cut, const Results& results, void* base,
                      Run run) {
  const Problem& p = call.p;
  return with_arithmetic(p, [&](auto arithmetic) -> cudaError_t {
    using T = decltype(arithmetic);
    const auto w = lay_out<T>(p, call.device, p.rows, /*selection_bytes=*/0, base);
    GKD_TRY(read_targets(p, w, results.grad_scale, call.stream));
    if (cut) GKD_TRY(launch_threads(set_cuts_kernel<T>, p.rows, call.stream, p.rows, cut, w.state));
    return run(RowsCall<T>{p, results.gradient, /*all_kl=*/false, w});
  });
}

}  // namespace

std::size_t shard_workspace_bytes(const Call& call) {
  return with_arithmetic(call.p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    return lay_out<T>(call.p, call.device, call.p.rows, /*selection_bytes=*/0, nullptr).bytes;
  });
}

cudaError_t shard_moments(const Call& call, const double* cut, double* moments, void* workspace) {
  const Chunk all = chunk_of(0, call.p.rows, call.p, call.device);
  return with_rows(call, cut, Results{}, workspace, [&](const auto& c) -> cudaError_t {
    using T = decltype(c.inv_temperature);
    GKD_TRY(segment_moments(c, all, call.stream));
    return launch_warps(moments_message_kernel<T>, call.p.rows, call.stream, c,
                        all.partition.segments, moments);
  });
}

cudaError_t shard_gradient(const Call& call, const double* cut, const double* moments,
                           std::int64_t ranks, void* gradient, double* kl, void* workspace) {
  const Chunk all = chunk_of(0, call.p.rows, call.p, call.device);
  const Results results{nullptr, nullptr, gradient};
  return with_rows(call, cut, results, workspace, [&](const auto& c) -> cudaError_t {
    using T = decltype(c.inv_temperature);
    GKD_TRY(
        launch_warps(shard_coefficients_kernel<T>, call.p.rows, call.stream, c, ranks, moments));
    GKD_TRY(write_gradients(c, all, call.stream));
    return send_kl(call, c.w.report, kl);
  });
}

cudaError_t shard_loss(const Call& call, const double* moments, const double* kl,
                       std::int64_t ranks, const Results& results, void* workspace) {
  return with_rows(call, nullptr, results, workspace, [&](const auto& c) -> cudaError_t {
    using T = decltype(c.inv_temperature);
    GKD_TRY(
        launch_warps(shard_coefficients_kernel<T>, call.p.rows, call.stream, c, ranks, moments));
    GKD_TRY(launch_threads(finalize_shard_kernel<T>, call.p.rows, call.stream, c, ranks, kl));
    return reduce_loss(call.p, c.w, results, call.device, call.stream);
  });
}

}  // namespace gkd::cuda
