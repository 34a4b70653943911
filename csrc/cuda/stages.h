// The stages of a call that runs as several kernels, in order. Each returns the launch's error.
#pragma once

#include "cuda/workspace.h"
#include "math/cut.h"

namespace gkd::cuda {

/// Every row's kind and forced target, and the reduction's factor. grad_scale: as of Results; null
/// where nobody asks for it.
template <class T>
cudaError_t read_targets(const Problem& problem, RowState<T>* state, T* weight, T* grad_scale,
                         cudaStream_t stream);

/// The cut that needs no look at the row: an empty group, all classes, all of probability > 0.
/// Returns whether the problem has one.
template <class T>
bool constant_cut(const Problem& p, T* cut) {
  const std::optional<T> value = gkd::constant_cut<T>({p.threshold, p.group_size}, p.row_classes());
  if (value) *cut = *value;
  return value.has_value();
}

/// One cut for every row.
template <class T>
cudaError_t fill_cuts(const Problem& problem, RowState<T>* state, T cut, cudaStream_t stream);

/// The cuts of a chunk's rows, for a problem without a constant cut.
template <class T>
cudaError_t find_cuts_sort(const Problem& problem, const Chunk& chunk, RowState<T>* state,
                           void* scratch, cudaStream_t stream);
template <class T>
cudaError_t find_cuts_select(const Problem& problem, const Chunk& chunk, RowState<T>* state,
                             void* scratch, cudaStream_t stream);

/// A chunk's summaries, the constants of its last sweep, and that sweep: the gradient unless it is
/// null, and each row's report. `all_kl`: also the KL of a group without weight.
template <class T>
cudaError_t run_split(const Problem& problem, const Chunk& chunk, const Workspace<T>& workspace,
                      bool all_kl, void* gradient, cudaStream_t stream);

/// Its first and its last sweep alone, for callers that finish rows otherwise.
template <class T>
cudaError_t accumulate_parts(const Problem& problem, const Chunk& chunk,
                             const Workspace<T>& workspace, cudaStream_t stream);
template <class T>
cudaError_t write_gradient_parts(const Problem& problem, const Chunk& chunk,
                                 const Workspace<T>& workspace, bool all_kl, void* gradient,
                                 cudaStream_t stream);

/// The reduced loss from the rows' reports.
template <class T>
cudaError_t reduce_loss(const Problem& problem, const RowReport* report, const T* weight, T* loss,
                        cudaStream_t stream);

/// The columns and the mask of gkd::group.
template <class T>
cudaError_t write_group(const Problem& problem, const RowState<T>* state, const RowReport* report,
                        const Device& device, const GroupColumns& columns, cudaStream_t stream);

}  // namespace gkd::cuda

/// Leaves the function with the first error.
#define GKD_TRY(call)                                          \
  do {                                                         \
    if (const cudaError_t error = (call); error) return error; \
  } while (0)
