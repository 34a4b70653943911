// One row of a class shard: what a rank tells the others about its part, and what it makes of their
// answers (math/messages.h). No torch, compiled once per instruction set like cpu/row.h.
#pragma once

#include "cpu/row.h"
#include "math/messages.h"

namespace gkd::cpu {

/// `row.classes` are the shard's and may be 0; `row.target` counts from the shard's first class and
/// may lie outside it.
struct ShardTask {
  RowTask row;
  std::int64_t all_classes = 1;
};

/// The stages of a row, in the order of a call.
struct ShardKernels {
  void (*extremes)(const ShardTask&, const Executor&, Scratch*, long long* extremes);
  void (*counts)(const ShardTask&, const long long* extremes, std::int32_t* counts);
  /// `counts` and `search` are the whole row's; `search` is null before the first spread.
  void (*amounts)(const ShardTask&, const long long* extremes, const std::int32_t* counts,
                  const long long* search, long long* amounts);
  /// The whole row's amounts to a narrower search; returns the cut, once it is found.
  double (*narrow)(const ShardTask&, const long long* extremes, const long long* amounts,
                   const long long* search, long long* next);
  void (*moments)(const ShardTask&, const Executor&, Scratch*, double cut, double* moments);
  /// The gradient of this part, and its KL sums; `group`: the whole row's summaries.
  void (*write_gradient)(const ShardTask&, const Executor&, Scratch*, double cut,
                         const GroupMoments<double>* group, double* kl);
  void (*fill)(const ShardTask&, double value);
};

namespace DEFAULT {
ShardKernels shard_kernels(bool wide);
}
namespace AVX2 {
ShardKernels shard_kernels(bool wide);
}
namespace AVX512 {
ShardKernels shard_kernels(bool wide);
}

/// The best ones that this processor runs, in float or in double arithmetic.
const ShardKernels& shard_kernels(bool wide);

}  // namespace gkd::cpu
