// The kernels that run once per row or once per call, for every launch strategy. Each launcher
// returns the launch's error. T is the arithmetic's type.
#pragma once

#include "cuda/launch.h"
#include "cuda/workspace.h"

namespace gkd::cuda {

/// Every row's kind and forced target, and the reduction's factor. grad_scale: as in Results, or
/// null where the caller does not need it.
template <class T>
cudaError_t read_targets(const Problem& problem, const Workspace<T>& w, void* grad_scale,
                         cudaStream_t stream);

/// One cut for every row.
template <class T>
cudaError_t fill_cuts(const Problem& problem, const Workspace<T>& w, T cut, cudaStream_t stream);

/// The reduced loss and its parts from the rows' reports, as in Results.
template <class T>
cudaError_t reduce_loss(const Problem& problem, const Workspace<T>& w, const Results& results,
                        const Device& device, cudaStream_t stream);

/// The columns and the mask of gkd::group.
template <class T>
cudaError_t write_group(const Call& call, const Workspace<T>& w, const GroupColumns& columns);

}  // namespace gkd::cuda
