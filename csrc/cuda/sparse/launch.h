// The launcher of sparse_loss, as launch.h has it for losses of two networks' logits.
#pragma once

#include "cuda/launch.h"

namespace gkd::cuda {

/// The group of every row, in device memory and compressed sparse row form: row i has the classes
/// indices[indptr[i]] to indices[indptr[i + 1] - 1], and `rest` is the log-sum-exp of the teacher's
/// other logits, divided by the temperature. Nothing here has been checked: a row of which
/// something is out of bounds or out of order is NaN.
struct SparseGroup {
  const std::int64_t* indptr = nullptr;  ///< [rows + 1]
  const std::int32_t* indices = nullptr;
  std::int64_t count = 0;  ///< of the indices
  const void* rest = nullptr;
  std::int64_t rest_stride = 1;
  bool rest_is_double = false;
  bool is_part = false;  ///< the rows are some of a longer group's

  GKD_HD std::int64_t begin(std::int64_t row) const { return indptr[row]; }
  GKD_HD std::int64_t end(std::int64_t row) const { return indptr[row + 1]; }
  GKD_HD double rest_of(std::int64_t row) const {
    const std::int64_t at = row * rest_stride;
    return rest_is_double ? static_cast<const double*>(rest)[at]
                          : static_cast<double>(static_cast<const float*>(rest)[at]);
  }
};

/// `p.teacher` is one row: the logits of all groups, in the order of the indices.
struct SparseCall : Call {
  SparseGroup group;
};

/// Bytes of device scratch that `sparse_forward` needs.
std::size_t sparse_workspace_bytes(const Problem& problem, const Device& device);

/// Loss, and the gradient unless `results.gradient` is null.
cudaError_t sparse_forward(const SparseCall& call, const Results& results, void* workspace);

/// The stages of a class-sharded call, as sharded/launch.h has them: the group's classes count from
/// the shard's first one, and `rest` is the whole row's.
std::size_t sparse_shard_workspace_bytes(const SparseCall& call);

/// -> moments [rows, kMsgMoments], with cross-entropy [rows, kMsgWithHead]
cudaError_t sparse_shard_moments(const SparseCall& call, double* moments, void* workspace);

/// moments [ranks, rows, ...] of all ranks and, last, of the teacher's rest -> gradient as in
/// Results, kl [rows, 2]
cudaError_t sparse_shard_gradient(const SparseCall& call, const double* moments, std::int64_t ranks,
                                  void* gradient, double* kl, void* workspace);

}  // namespace gkd::cuda
