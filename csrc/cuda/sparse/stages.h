// The stages of a sparse call, in order. Each returns the launch's error. T is the arithmetic's
// type.
#pragma once

#include "cuda/sparse/launch.h"
#include "cuda/workspace.h"

namespace gkd::cuda {

/// A sparse call's rows on their way to reports and gradients.
template <class T>
struct SparseRows : RowsCall<T> {
  SparseGroup group;
};

/// Makes a row invalid where its group's numbers cannot be, so that no later kernel reads them.
template <class T>
cudaError_t check_groups(const SparseRows<T>& call, cudaStream_t stream);

/// Rows of a chunk, and scratch for them.
std::int64_t sparse_chunk_rows(const Problem& problem);
std::size_t sparse_scratch_bytes(const Problem& problem, const Device& device,
                                 std::int64_t chunk_rows);

/// The moments of a chunk's segments.
template <class T>
cudaError_t sparse_moments(const SparseRows<T>& call, const Chunk& chunk, cudaStream_t stream);

/// The gradient of a chunk's rows, whose coefficients are in place, and their reports.
template <class T>
cudaError_t sparse_gradients(const SparseRows<T>& call, const Chunk& chunk, cudaStream_t stream);

/// The loss of a chunk by several kernels: moments, coefficients, then the gradient unless it is
/// null, and each row's report.
template <class T>
cudaError_t run_sparse_loss(const SparseRows<T>& call, const Chunk& chunk, cudaStream_t stream);

}  // namespace gkd::cuda
