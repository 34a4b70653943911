// The stages of a call that runs as several kernels, in order. Each returns the launch's error.
// T is the arithmetic's type.
#pragma once

#include "cuda/workspace.h"

namespace gkd::cuda {

/// Rows of a chunk, and scratch for finding their cuts.
std::int64_t sort_chunk_rows(const Problem& problem);
std::int64_t select_chunk_rows(const Problem& problem);
std::size_t sort_scratch_bytes(const Problem& problem, std::int64_t rows);
template <class T>
std::size_t select_scratch_bytes(const Problem& problem, std::int64_t rows);

/// The cuts of a chunk's rows, for a problem without a constant cut.
template <class T>
cudaError_t find_cuts_sort(const Problem& problem, const Chunk& chunk, bool keep_larger,
                           const Workspace<T>& w, cudaStream_t stream);
template <class T>
cudaError_t find_cuts_select(const Problem& problem, const Chunk& chunk, bool keep_larger,
                             const Workspace<T>& w, cudaStream_t stream);

/// The loss of a chunk with known cuts: moments, coefficients, then the gradient unless it is null,
/// and each row's report.
template <class T>
cudaError_t run_loss(const RowsCall<T>& call, const Chunk& chunk, cudaStream_t stream);

/// Its first and its last pass alone, for callers that set the coefficients otherwise. The first
/// one also sums the segments' part of cross-entropy.
template <class T>
cudaError_t segment_moments(const RowsCall<T>& call, const Chunk& chunk, cudaStream_t stream);
template <class T>
cudaError_t write_gradients(const RowsCall<T>& call, const Chunk& chunk, cudaStream_t stream);

/// Each row's report from the KL sums of its segments: what write_gradients() does last.
template <class T>
cudaError_t finalize_rows(const RowsCall<T>& call, const Chunk& chunk, cudaStream_t stream);

}  // namespace gkd::cuda
