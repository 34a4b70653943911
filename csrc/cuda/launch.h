// The launchers: no torch, raw pointers, one stream. Nothing here synchronises, allocates or copies
// to the host, so a call can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/problem.h"

namespace gkd::cuda {

/// How the cut of each row is found.
enum class Method {
  /// CUB sorts every row's ranking logits, keys only; a scan of the sorted masses meets the
  /// threshold. At least 72 bytes of traffic per class, and at most 256 MiB of scratch unless one
  /// row
  /// needs more.
  kSort,
  /// Counts by bin leave a few classes that can be the cut, which are weighed exactly. No [B, C]
  /// scratch. One kernel where a row fits on chip, several elsewhere: see LaunchStrategy.
  kSelect,
};

/// The limits of a device; `cudaDeviceGetAttribute` alone, no synchronisation.
cudaError_t query_device(int index, Device* device);

/// The kernels that `forward` would run.
LaunchStrategy strategy_of(const Problem& problem, const Device& device, Method method);

/// Bytes of device scratch that `forward` and `group` need.
std::size_t workspace_bytes(const Problem& problem, const Device& device, Method method);

/// Loss, and the gradient unless `results.gradient` is null.
cudaError_t forward(const Problem& problem, const Results& results, const Device& device,
                    Method method, void* workspace, cudaStream_t stream);

/// Diagnostics of the grouping.
cudaError_t group(const Problem& problem, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream);

/// The backward: the gradient times grad_output.
cudaError_t scale(const ScaleCall& call, const Device& device, cudaStream_t stream);

}  // namespace gkd::cuda
