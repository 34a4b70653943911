// The fused kernel of one kind of block group, and its launch.
#pragma once

#include "cuda/fused/kernel.cuh"
#include "cuda/fused/launch.h"

namespace gkd::cuda {

template <class T, class Elem, class BlockGroup>
__global__ void __launch_bounds__(kFusedThreads) fused_kernel(const FusedCall<T> c) {
  extern __shared__ __align__(16) char memory[];
  using Layout = FusedLayout<Elem, BlockGroup>;
  auto& shared = *reinterpret_cast<typename Layout::Storage*>(memory);
  char* segments = memory + Layout::kSegmentOffset;
  if constexpr (std::is_same_v<BlockGroup, GridGroup>) {
    GridGroup group{shared.group, c.scratch + blockIdx.x / c.blocks_per_row, c.blocks_per_row};
    process_rows<T, Elem, kFusedThreads>(c, shared, segments, group);
  } else {
    BlockGroup group{shared.group};
    process_rows<T, Elem, kFusedThreads>(c, shared, segments, group);
  }
}

template <class T, class Elem, class BlockGroup>
cudaError_t launch_fused(const FusedCall<T>& call, const FusedPlan& plan, cudaStream_t stream) {
  const auto kernel = &fused_kernel<T, Elem, BlockGroup>;
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(plan.shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * plan.blocks_per_row));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (plan.strategy == LaunchStrategy::kCluster) {
    if (plan.blocks_per_row > kPortableCluster) {
      GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(plan.blocks_per_row);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (plan.strategy == LaunchStrategy::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = plan.strategy == LaunchStrategy::kBlock ? 0 : 1;
  return cudaLaunchKernelEx(&config, kernel, call);
}

#define GKD_LAUNCH_FUSED(BlockGroup, Elem)                               \
  template cudaError_t launch_fused<Arithmetic<Elem>, Elem, BlockGroup>( \
      const FusedCall<Arithmetic<Elem>>&, const FusedPlan&, cudaStream_t);

/// For every element type.
#define GKD_LAUNCH_FUSED_ALL(BlockGroup)      \
  GKD_LAUNCH_FUSED(BlockGroup, __half)        \
  GKD_LAUNCH_FUSED(BlockGroup, __nv_bfloat16) \
  GKD_LAUNCH_FUSED(BlockGroup, float)         \
  GKD_LAUNCH_FUSED(BlockGroup, double)

}  // namespace gkd::cuda
