// The kernels that run once per row or once per call, for every launch strategy. Each launcher
// returns the launch's error. T is the arithmetic's type.
#pragma once

#include "cuda/workspace.h"

namespace gkd::cuda {

/// Every row's kind and forced target, and the reduction's factor. grad_scale: as in Results, or
/// null where the caller does not need it.
template <class T>
cudaError_t read_targets(const Problem& problem, RowState<T>* state, T* weight, T* grad_scale,
                         cudaStream_t stream);

/// One cut for every row.
template <class T>
cudaError_t fill_cuts(const Problem& problem, RowState<T>* state, T cut, cudaStream_t stream);

/// The reduced loss from the rows' reports.
template <class T>
cudaError_t reduce_loss(const Problem& problem, const RowReport* report, const T* weight, T* loss,
                        cudaStream_t stream);

/// The columns and the mask of gkd::group.
template <class T>
cudaError_t write_group(const Problem& problem, const RowState<T>* state, const RowReport* report,
                        const Device& device, const GroupColumns& columns, cudaStream_t stream);

}  // namespace gkd::cuda
