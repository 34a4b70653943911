// The launchers: no torch, raw pointers, one stream. Nothing here synchronises, allocates or copies
// to the host, so a call can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/problem.h"

namespace gkd::cuda {

/// Inputs and settings, and where their kernels run.
struct Call {
  Problem p;
  Device device;
  cudaStream_t stream = nullptr;
};

/// The limits of a device; `cudaDeviceGetAttribute` alone, no synchronisation.
cudaError_t query_device(int index, Device* device);

/// Bytes of device scratch that `forward` and `group` need.
std::size_t workspace_bytes(const Problem& problem, const Device& device);

/// Loss, and the gradient unless `results.gradient` is null.
cudaError_t forward(const Call& call, const Results& results, void* workspace);

/// Diagnostics of the grouping.
cudaError_t group(const Call& call, const GroupColumns& columns, void* workspace);

/// The backward: the gradient times grad_output.
cudaError_t scale(const ScaleCall& call, const Device& device, cudaStream_t stream);

}  // namespace gkd::cuda
