// A row's messages between ranks (math/messages.h) as the kernels write and read them.
#pragma once

#include "cuda/block/load_store.cuh"
#include "cuda/launch_kernel.cuh"
#include "cuda/sharded/launch.h"
#include "cuda/workspace.h"

namespace gkd::cuda {

/// Of a row's moments.
__host__ __device__ inline int message_width(const Problem& p) {
  return p.weights.cross_entropy != 0 ? kMsgWithHead : kMsgMoments;
}

__device__ inline SegmentMoments shard_from_message(const double* message) {
  SegmentMoments shard;
  for (int g = 0; g < 2; ++g) shard.group[g] = moments_from_message(message, g);
  shard.invalid = message[kMsgInvalid] != 0;
  return shard;
}

/// By one thread: what this rank sends of a row.
template <class T>
__device__ void write_message(const RowsCall<T>& c, std::int64_t row, const SegmentMoments& shard,
                              const OtherSum& others, double* message) {
  const RowKind kind = c.w.state[row].kind;
  if (c.p.weights.cross_entropy != 0) {
    const std::int64_t target = c.w.state[row].target;
    const bool is_here = kind == RowKind::kCounted && target >= 0 && target < c.p.classes;
    message[kMsgOthers] = others.high;
    message[kMsgOthers + 1] = others.sum;
    message[kMsgTarget] = is_here ? load_any<double>(c.p.student, row, target) - c.p.margin(row)
                                  : -std::numeric_limits<double>::infinity();
  }
  for (int g = 0; g < 2; ++g) moments_to_message(shard.group[g], g, message);
  // A target out of bounds is sent to all ranks: their targets might differ.
  message[kMsgInvalid] = shard.invalid || kind == RowKind::kInvalid;
}

static __global__ void kl_message_kernel(std::int64_t rows, const RowReport* report, double* kl) {
  const std::int64_t row = thread_row();
  if (row >= rows) return;
  kl[2 * row] = report[row].primary;
  kl[2 * row + 1] = report[row].secondary;
}

/// What this rank sends of every row's KL.
inline cudaError_t send_kl(const Call& call, const RowReport* report, double* kl) {
  return launch_threads(kl_message_kernel, call.p.rows, call.stream, call.p.rows, report, kl);
}

}  // namespace gkd::cuda
