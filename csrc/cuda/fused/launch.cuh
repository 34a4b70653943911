// Launches of the fused kernels, and what a device says of them.
#pragma once

#include <atomic>

#include "cuda/fused/kernel.cuh"

namespace gkd::cuda {

/// Whether there is a kernel for streamed rows: what one block would stream, a cluster can hold.
template <class Elem, class BlockGroup>
constexpr bool kCanStream =
    !std::is_same_v<BlockGroup, SingleBlock> && sizeof(Elem) <= sizeof(float);

/// Allows a kernel all shared memory of the current device, once: a smaller limit, set for one
/// call, would fail another thread's call between its limit and its launch.
template <class Elem, class BlockGroup, bool kCrossEntropy, bool kStreamed>
cudaError_t prepare_kernel() {
  constexpr int kDevices = 64;  // more are prepared in every call
  static std::atomic<bool> prepared[kDevices];
  int device = 0, bytes = 0;
  GKD_TRY(cudaGetDevice(&device));
  if (device < kDevices && prepared[device]) return cudaSuccess;
  const auto kernel = &fused_kernel<Elem, BlockGroup, kCrossEntropy, kStreamed>;
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
template <class Elem, class BlockGroup, bool kCrossEntropy, bool kStreamed = false, class Use>
cudaError_t with_config(const FusedPlan& plan, cudaStream_t stream, Use use) {
  if constexpr (kCanStream<Elem, BlockGroup> && !kStreamed) {
    if (plan.streamed) return with_config<Elem, BlockGroup, kCrossEntropy, true>(plan, stream, use);
  }
  GKD_TRY((prepare_kernel<Elem, BlockGroup, kCrossEntropy, kStreamed>()));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * plan.blocks_per_row));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (plan.strategy == LaunchStrategy::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(plan.blocks_per_row);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (plan.strategy == LaunchStrategy::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = plan.strategy == LaunchStrategy::kBlock ? 0 : 1;
  return use(&fused_kernel<Elem, BlockGroup, kCrossEntropy, kStreamed>, config);
}

template <class BlockGroup, class T>
cudaError_t launch_fused(const FusedCall<T>& call, cudaStream_t stream) {
  const auto start = [&](auto kernel, const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, call);
  };
  return with_element<T>(call.p.student.dtype, [&](auto elem) {
    using Elem = decltype(elem);
    return call.p.weights.cross_entropy != 0
               ? with_config<Elem, BlockGroup, true>(call.plan, stream, start)
               : with_config<Elem, BlockGroup, false>(call.plan, stream, start);
  });
}

template <class BlockGroup>
std::int64_t ask_residency(Dtype dtype, const FusedPlan& plan) {
  int groups = 0;
  const auto ask = [&](auto kernel, const cudaLaunchConfig_t& config) -> cudaError_t {
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
  };
  const cudaError_t error = with_dtype(dtype, [&](auto elem) {
    return with_config<decltype(elem), BlockGroup, false>(plan, nullptr, ask);
  });
  if (error != cudaSuccess) (void)cudaGetLastError();  // a refusal is an answer, not an error
  return error == cudaSuccess ? groups : 0;
}

}  // namespace gkd::cuda
