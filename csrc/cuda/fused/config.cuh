// How a kernel of a FusedPlan is launched, and what the device says of it.
#pragma once

#include <atomic>

#include "cuda/dependent_launch.cuh"
#include "cuda/fused/cluster_group.cuh"
#include "cuda/fused/plan.h"

namespace gkd::cuda {

/// Allows a kernel all shared memory of the current device, once: a smaller limit, set for one
/// call, would fail another thread's call between its limit and its launch.
template <auto kernel, class BlockGroup>
cudaError_t prepare_kernel() {
  constexpr int kDevices = 64;  // more are prepared in every call
  static std::atomic<bool> prepared[kDevices];
  int device = 0, bytes = 0;
  GKD_TRY(cudaGetDevice(&device));
  if (device < kDevices && prepared[device]) return cudaSuccess;
  GKD_TRY(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared));
  if (std::is_same_v<BlockGroup, ClusterGroup>) {
    GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  if (device < kDevices) prepared[device] = true;
  return cudaSuccess;
}

/// Calls use(kernel, config) with the configuration of a plan's launch.
template <auto kernel, class BlockGroup, class Use>
cudaError_t with_kernel(const FusedPlan& plan, cudaStream_t stream, Use use) {
  GKD_TRY((prepare_kernel<kernel, BlockGroup>()));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * plan.blocks_per_row));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  LaunchAttributes attributes;
  if (plan.strategy == LaunchStrategy::kCluster) {
    auto& size = attributes.add(cudaLaunchAttributeClusterDimension).clusterDim;
    size.x = static_cast<unsigned>(plan.blocks_per_row);
    size.y = size.z = 1;
  } else if (plan.strategy == LaunchStrategy::kGrid) {
    attributes.add(cudaLaunchAttributeCooperative).cooperative = 1;
  }
  if (plan.starts_early) attributes.start_early();
  config.attrs = attributes.list;
  config.numAttrs = attributes.count;
  return use(kernel, config);
}

/// How many groups of a kernel's blocks the current device holds at a time, of a grid how many
/// blocks; 0: it grants none. with(ask) calls ask(kernel, config).
template <class BlockGroup, class With>
std::int64_t count_resident(With with) {
  int groups = 0;
  const cudaError_t error = with([&](auto kernel, const cudaLaunchConfig_t& config) -> cudaError_t {
    if constexpr (std::is_same_v<BlockGroup, ClusterGroup>) {
      return cudaOccupancyMaxActiveClusters(&groups, kernel, &config);
    }
    int device = 0, multiprocessors = 0;
    GKD_TRY(cudaGetDevice(&device));
    GKD_TRY(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    GKD_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&groups, kernel, kFusedThreads,
                                                          config.dynamicSmemBytes));
    groups *= multiprocessors;
    return cudaSuccess;
  });
  if (error != cudaSuccess) (void)cudaGetLastError();  // a refusal is an answer, not an error
  return error == cudaSuccess ? groups : 0;
}

}  // namespace gkd::cuda
