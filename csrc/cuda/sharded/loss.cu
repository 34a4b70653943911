// The loss of rows whose classes are sharded over ranks: the passes of multi_kernel/loss.cu over
// this rank's classes, with all ranks' moments in between.
#include "cuda/block/passes.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/multi_kernel/stages.h"
#include "cuda/row_ops.h"
#include "cuda/sharded/launch.h"

namespace gkd::cuda {
namespace {

__device__ SegmentMoments shard_from_message(const double* message) {
  SegmentMoments shard;
  for (int g = 0; g < 2; ++g) shard.group[g] = moments_from_message(message, g);
  shard.invalid = message[kMsgInvalid] != 0;
  return shard;
}

template <class T>
__global__ void set_cuts_kernel(std::int64_t rows, const double* cut, RowState<T>* state) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < rows) state[row].cut = static_cast<T>(cut[row]);
}

/// One warp per row: the moments of its segments, merged into one message.
template <class T>
__global__ void moments_message_kernel(Problem p, Chunk chunk, const RowState<T>* state,
                                       const SegmentMoments* moments, double* messages) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (row >= chunk.rows) return;
  const std::int64_t segments = chunk.partition.segments;
  SegmentMoments shard{};
  if (state[row].kind == RowKind::kCounted) {
    shard = merge_moments(
        p, [&](std::int64_t segment) { return moments[row * segments + segment]; }, segments,
        storage[warp]);
  }
  if (threadIdx.x % kWarp != 0) return;
  double* message = messages + row * kMsgMoments;
  for (int g = 0; g < 2; ++g) moments_to_message(shard.group[g], g, message);
  // A target out of bounds is sent to all ranks: their targets might differ.
  message[kMsgInvalid] = shard.invalid || state[row].kind == RowKind::kInvalid;
}

/// One warp per row: all ranks' moments to the row's coefficients.
template <class T>
__global__ void shard_coefficients_kernel(Problem p, std::int64_t ranks, const double* moments,
                                          RowState<T>* state, RowReport* report, const T* weight) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (row >= p.rows) return;
  RowReport result;
  if (state[row].kind == RowKind::kCounted) {
    result = merge_into_row(
        p,
        [&](std::int64_t rank) {
          return shard_from_message(moments + (rank * p.rows + row) * kMsgMoments);
        },
        ranks, static_cast<double>(*weight), &state[row], storage[warp]);
  }
  if (threadIdx.x % kWarp == 0) report[row] = result;
}

__global__ void kl_message_kernel(std::int64_t rows, const RowReport* report, double* kl) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  kl[2 * row] = report[row].primary;
  kl[2 * row + 1] = report[row].secondary;
}

template <class T>
__global__ void finalize_shard_kernel(Problem p, std::int64_t ranks, const RowState<T>* state,
                                      const double* kl, RowReport* report) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  SegmentKl sum{};
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const double* shard = kl + (rank * p.rows + row) * 2;
    sum = AddKl{}(sum, SegmentKl{{shard[0], shard[1]}});
  }
  finalize_row(p, state[row].kind, sum, &report[row]);
}

Chunk all_rows(const Problem& p, const Device& device) {
  return {0, p.rows, partition_rows(p.rows, p.classes, device)};
}

/// Every row's kind and target, and its cut.
template <class T>
cudaError_t prepare_rows(const Problem& p, const double* cut, const Workspace<T>& w,
                         cudaStream_t stream) {
  GKD_TRY(read_targets<T>(p, w.state, w.weight, nullptr, stream));
  set_cuts_kernel<<<num_blocks(p.rows, kPassThreads), kPassThreads, 0, stream>>>(p.rows, cut,
                                                                                 w.state);
  return cudaGetLastError();
}

template <class T>
cudaError_t shard_coefficients(const Problem& p, const double* moments, std::int64_t ranks,
                               const Workspace<T>& w, cudaStream_t stream) {
  shard_coefficients_kernel<<<num_blocks(p.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0,
                              stream>>>(p, ranks, moments, w.state, w.report, w.weight);
  return cudaGetLastError();
}

/// Calls run(workspace) in the problem's arithmetic.
template <class Run>
auto with_workspace(const Problem& p, const Device& device, void* base, Run run) {
  return with_arithmetic(p, [&](auto arithmetic) {
    return run(lay_out<decltype(arithmetic)>(p, device, p.rows, /*selection_bytes=*/0, base));
  });
}

}  // namespace

std::size_t shard_workspace_bytes(const Problem& p, const Device& device) {
  return with_workspace(p, device, nullptr, [](const auto& w) { return w.bytes; });
}

cudaError_t shard_moments(const Problem& p, const Device& device, const double* cut,
                          double* moments, void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    const Chunk chunk = all_rows(p, device);
    GKD_TRY(prepare_rows(p, cut, w, stream));
    GKD_TRY(segment_moments(p, chunk, w, stream));
    moments_message_kernel<<<num_blocks(p.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0,
                             stream>>>(p, chunk, w.state, w.moments, moments);
    return cudaGetLastError();
  });
}

cudaError_t shard_gradient(const Problem& p, const Device& device, const double* cut,
                           const double* moments, std::int64_t ranks, void* gradient, double* kl,
                           void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    GKD_TRY(prepare_rows(p, cut, w, stream));
    GKD_TRY(shard_coefficients(p, moments, ranks, w, stream));
    GKD_TRY(write_gradients(p, all_rows(p, device), w, /*all_kl=*/false, gradient, stream));
    kl_message_kernel<<<num_blocks(p.rows, kPassThreads), kPassThreads, 0, stream>>>(p.rows,
                                                                                     w.report, kl);
    return cudaGetLastError();
  });
}

cudaError_t shard_loss(const Problem& p, const Device& device, const double* moments,
                       const double* kl, std::int64_t ranks, const Results& results,
                       void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    using T = std::remove_pointer_t<decltype(w.weight)>;
    GKD_TRY(read_targets(p, w.state, w.weight, static_cast<T*>(results.grad_scale), stream));
    GKD_TRY(shard_coefficients(p, moments, ranks, w, stream));
    finalize_shard_kernel<<<num_blocks(p.rows, kPassThreads), kPassThreads, 0, stream>>>(
        p, ranks, w.state, kl, w.report);
    GKD_TRY(cudaGetLastError());
    return reduce_loss(p, w.report, w.weight, static_cast<T*>(results.loss), stream);
  });
}

}  // namespace gkd::cuda
