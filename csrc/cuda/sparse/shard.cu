// sparse_loss of rows whose classes are sharded over ranks: the kernels of loss.cu over this rank's
// classes, with all ranks' moments in between.
#include "cuda/block/cross_entropy.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/launch_kernel.cuh"
#include "cuda/row_ops.h"
#include "cuda/sharded/messages.cuh"
#include "cuda/sparse/rest.cuh"
#include "cuda/sparse/stages.h"

namespace gkd::cuda {
namespace {

struct WarpStorage {
  MergeStorage moments;
  OthersReduce::TempStorage others;
};

/// One warp per row: what its segments hold, merged into one message. What the teacher has outside
/// the group is not in it.
template <class T>
__global__ void sparse_message_kernel(SparseRows<T> c, std::int64_t segments, double* messages) {
  __shared__ WarpStorage warps[kWarpsPerBlock];
  WarpStorage& storage = warps[threadIdx.x / kWarp];
  const std::int64_t row = warp_row(), first = row * segments;
  if (row >= c.p.rows) return;
  SegmentMoments shard{};
  OtherSum others;
  if (c.w.state[row].kind == RowKind::kCounted) {
    const OtherSum* parts = rest_of(c.w.selection) + first;
    shard = merge_moments(
        c.p, [&](std::int64_t k) { return c.w.moments[first + k]; }, segments, storage.moments);
    const OtherSum rest = merge_others([&](std::int64_t k) { return parts[k]; }, segments,
                                       1 / c.p.weights.exponent_temperature(), storage.others);
    shard.group[1] = {};
    shard.group[1].shift.student = rest.high;
    shard.group[1].sum_student = shard.group[1].sum_diff = rest.sum;
    shard.group[1].count = c.p.classes - (c.group.end(row) - c.group.begin(row));
    __syncwarp();  // the reduction's memory is free
    if (c.p.weights.cross_entropy != 0) {
      others = merge_others([&](std::int64_t k) { return c.w.others[first + k]; }, segments,
                            c.p.weights.scale, storage.others);
    }
  }
  if (threadIdx.x % kWarp == 0) {
    write_message(c, row, shard, others, messages + row * message_width(c.p));
  }
}

/// One warp per row: all ranks' moments to the row's coefficients. The student's shift of the rest
/// is its largest logit there on any rank.
template <class T>
__global__ void sparse_coefficients_kernel(SparseRows<T> c, std::int64_t ranks,
                                           const double* moments) {
  __shared__ MergeStorage storage[kWarpsPerBlock];
  MergeStorage& merged = storage[threadIdx.x / kWarp];
  const std::int64_t row = warp_row();
  if (row >= c.p.rows) return;
  const std::int64_t width = message_width(c.p), stride = c.p.rows * width;
  const double* messages = moments + row * width;
  RowReport result;
  if (c.w.state[row].kind == RowKind::kCounted) {
    const auto weight = static_cast<double>(*c.w.weight);
    const auto message_of = [&](std::int64_t rank) {
      return shard_from_message(messages + rank * stride);
    };
    SegmentMoments whole = merge_moments(c.p, message_of, ranks, merged);
    if (threadIdx.x % kWarp == 0) {
      double high = -std::numeric_limits<double>::infinity();
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const double own = message_of(rank).group[1].shift.student;
        high = own > high ? own : high;
      }
      GroupMoments<double>& rest = whole.group[1];
      rest.change_shift({finite_or_zero(rest.shift.teacher), finite_or_zero(high)},
                        1 / c.p.weights.exponent_temperature());
      merged.row = whole;
      if (c.p.weights.cross_entropy != 0) {
        OtherSum others;
        const CrossEntropy head =
            cross_entropy_from_messages(messages, ranks, stride, c.p.weights.scale, &others);
        set_head(c.p, head, others.high, weight, &c.w.head[row]);
      }
    }
    __syncwarp();  // every lane reads the moments
    result = set_row(c.p, merged.row, weight, &c.w.state[row]);
  }
  if (threadIdx.x % kWarp == 0) c.w.report[row] = result;
}

/// Calls run(rows, all) in the problem's arithmetic, when every row's kind and target are in place.
template <class Run>
cudaError_t with_rows(const SparseCall& call, void* gradient, void* base, Run run) {
  const Problem& p = call.p;
  return with_arithmetic(p, [&](auto arithmetic) -> cudaError_t {
    using T = decltype(arithmetic);
    const std::size_t scratch = sparse_scratch_bytes(p, call.device, p.rows);
    const auto w = lay_out<T>(p, call.device, p.rows, scratch, base);
    const SparseRows<T> rows{{p, gradient, /*all_kl=*/false, w}, call.group};
    GKD_TRY(read_targets(p, w, nullptr, call.stream));
    GKD_TRY(check_groups(rows, call.stream));
    return run(rows, chunk_of(0, p.rows, p, call.device));
  });
}

}  // namespace

std::size_t sparse_shard_workspace_bytes(const SparseCall& call) {
  return with_arithmetic(call.p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = call.p;
    const std::size_t scratch = sparse_scratch_bytes(p, call.device, p.rows);
    return lay_out<T>(p, call.device, p.rows, scratch, nullptr).bytes;
  });
}

cudaError_t sparse_shard_moments(const SparseCall& call, double* moments, void* workspace) {
  return with_rows(call, nullptr, workspace, [&](const auto& c, const Chunk& all) -> cudaError_t {
    using T = decltype(c.inv_temperature);
    GKD_TRY(sparse_moments<T>(c, all, call.stream));
    return launch_warps(sparse_message_kernel<T>, call.p.rows, call.stream, c,
                        all.partition.segments, moments);
  });
}

cudaError_t sparse_shard_gradient(const SparseCall& call, const double* moments, std::int64_t ranks,
                                  void* gradient, double* kl, void* workspace) {
  return with_rows(call, gradient, workspace, [&](const auto& c, const Chunk& all) -> cudaError_t {
    using T = decltype(c.inv_temperature);
    GKD_TRY(
        launch_warps(sparse_coefficients_kernel<T>, call.p.rows, call.stream, c, ranks, moments));
    GKD_TRY(sparse_gradients<T>(c, all, call.stream));
    return send_kl(call, c.w.report, kl);
  });
}

}  // namespace gkd::cuda
