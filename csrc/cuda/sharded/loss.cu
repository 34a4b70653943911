// The loss of rows whose classes are split over ranks: the sweeps of loss_split.cu over this rank's
// classes, with all ranks' summaries in between.
#include "cuda/finish.cuh"
#include "cuda/shard.h"
#include "cuda/stages.h"
#include "cuda/sweeps.cuh"

namespace gkd::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

__device__ PartMoments part_from_message(const double* wire) {
  PartMoments part;
  for (int g = 0; g < 2; ++g) part.group[g] = moments_from_message(wire, g);
  part.bad = wire[kMsgInvalid] != 0;
  return part;
}

template <class T>
__global__ void set_cuts_kernel(std::int64_t rows, const double* cut, RowState<T>* state) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < rows) state[row].cut = static_cast<T>(cut[row]);
}

/// One warp a row: its parts' summaries as one message.
template <class T>
__global__ void send_moments_kernel(Problem p, Chunk chunk, const RowState<T>* state,
                                    const PartMoments* moments, double* wire) {
  __shared__ FinishStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (row >= chunk.rows) return;
  MergedParts all{};
  if (state[row].kind == RowKind::kCounted) {
    all = merge_parts(
        p, [&](std::int64_t part) { return moments[row * chunk.split.parts + part]; },
        chunk.split.parts, storage[warp]);
  }
  if (threadIdx.x % kWarp != 0) return;
  double* to = wire + row * kMsgMoments;
  for (int g = 0; g < 2; ++g) moments_to_message(all.group[g], g, to);
  // A target out of bounds is told too: the others' may differ by mistake.
  to[kMsgInvalid] = all.bad || state[row].kind == RowKind::kInvalid;
}

/// One warp a row: all ranks' summaries to the row's constants.
template <class T>
__global__ void finish_shard_kernel(Problem p, std::int64_t ranks, const double* moments,
                                    RowState<T>* state, RowReport* report, const T* weight) {
  __shared__ FinishStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp;
  const std::int64_t row = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (row >= p.rows) return;
  RowReport result;
  if (state[row].kind == RowKind::kCounted) {
    result = finish_parts(
        p,
        [&](std::int64_t rank) {
          return part_from_message(moments + (rank * p.rows + row) * kMsgMoments);
        },
        ranks, static_cast<double>(*weight), &state[row], storage[warp]);
  }
  if (threadIdx.x % kWarp == 0) report[row] = result;
}

__global__ void send_kl_kernel(std::int64_t rows, const RowReport* report, double* kl) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  kl[2 * row] = report[row].primary;
  kl[2 * row + 1] = report[row].secondary;
}

template <class T>
__global__ void close_shard_kernel(Problem p, std::int64_t ranks, const RowState<T>* state,
                                   const double* kl, RowReport* report) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  PartKl sum{};
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const double* part = kl + (rank * p.rows + row) * 2;
    sum = AddKl{}(sum, PartKl{{part[0], part[1]}});
  }
  finalize_row(p, state[row].kind, sum, &report[row]);
}

unsigned blocks_of(std::int64_t rows, int rows_per_block) {
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

template <class T>
Workspace<T> lay_out(const Problem& p, const Device& device, void* base) {
  Workspace<T> w{};
  Arena arena(base);
  const auto rows = static_cast<std::size_t>(p.rows);
  const auto parts = static_cast<std::size_t>(most_parts(p.rows, p.classes, device));
  w.state = arena.take<RowState<T>>(rows);
  w.report = arena.take<RowReport>(rows);
  w.weight = arena.take<T>(1);
  w.moments = arena.take<PartMoments>(parts);
  w.kl = arena.take<PartKl>(parts);
  w.bytes = arena.used();
  return w;
}

Chunk all_rows(const Problem& p, const Device& device) {
  return {0, p.rows, split_rows(p.rows, p.classes, device)};
}

template <class T>
cudaError_t set_cuts(const Problem& p, const double* cut, const Workspace<T>& w,
                     cudaStream_t stream) {
  GKD_TRY(read_targets<T>(p, w.state, w.weight, nullptr, stream));
  set_cuts_kernel<<<blocks_of(p.rows, kSweepThreads), kSweepThreads, 0, stream>>>(p.rows, cut,
                                                                                  w.state);
  return cudaGetLastError();
}

template <class T>
cudaError_t finish_shard(const Problem& p, const double* moments, std::int64_t ranks,
                         const Workspace<T>& w, cudaStream_t stream) {
  finish_shard_kernel<<<blocks_of(p.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
      p, ranks, moments, w.state, w.report, w.weight);
  return cudaGetLastError();
}

/// run(workspace) in the problem's arithmetic.
template <class Run>
cudaError_t with_workspace(const Problem& p, const Device& device, void* base, Run run) {
  return p.wide() ? run(lay_out<double>(p, device, base)) : run(lay_out<float>(p, device, base));
}

}  // namespace

std::size_t shard_workspace_bytes(const Problem& p, const Device& device) {
  return p.wide() ? lay_out<double>(p, device, nullptr).bytes
                  : lay_out<float>(p, device, nullptr).bytes;
}

cudaError_t shard_moments(const Problem& p, const Device& device, const double* cut,
                          double* moments, void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    const Chunk chunk = all_rows(p, device);
    GKD_TRY(set_cuts(p, cut, w, stream));
    GKD_TRY(accumulate_parts(p, chunk, w, stream));
    send_moments_kernel<<<blocks_of(p.rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, stream>>>(
        p, chunk, w.state, w.moments, moments);
    return cudaGetLastError();
  });
}

cudaError_t shard_emit(const Problem& p, const Device& device, const double* cut,
                       const double* moments, std::int64_t ranks, void* gradient, double* kl,
                       void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    GKD_TRY(set_cuts(p, cut, w, stream));
    GKD_TRY(finish_shard(p, moments, ranks, w, stream));
    GKD_TRY(write_gradient_parts(p, all_rows(p, device), w, /*all_kl=*/false, gradient, stream));
    send_kl_kernel<<<blocks_of(p.rows, kSweepThreads), kSweepThreads, 0, stream>>>(p.rows, w.report,
                                                                                   kl);
    return cudaGetLastError();
  });
}

cudaError_t shard_loss(const Problem& p, const Device& device, const double* moments,
                       const double* kl, std::int64_t ranks, const Results& results,
                       void* workspace, cudaStream_t stream) {
  return with_workspace(p, device, workspace, [&](const auto& w) -> cudaError_t {
    using T = std::remove_pointer_t<decltype(w.weight)>;
    GKD_TRY(read_targets(p, w.state, w.weight, static_cast<T*>(results.grad_scale), stream));
    GKD_TRY(finish_shard(p, moments, ranks, w, stream));
    close_shard_kernel<<<blocks_of(p.rows, kSweepThreads), kSweepThreads, 0, stream>>>(
        p, ranks, w.state, kl, w.report);
    GKD_TRY(cudaGetLastError());
    return reduce_loss(p, w.report, w.weight, static_cast<T*>(results.loss), stream);
  });
}

}  // namespace gkd::cuda
