// Launches of the fused kernels, and what a device says of them.
#pragma once

#include "cuda/fused/config.cuh"
#include "cuda/fused/kernel.cuh"

namespace gkd::cuda {

/// Whether there is a kernel for streamed rows: what one block would stream, a cluster can hold.
template <class Elem, class BlockGroup>
constexpr bool kCanStream =
    !std::is_same_v<BlockGroup, SingleBlock> && sizeof(Elem) <= sizeof(float);

/// Calls use(kernel, config) with the kernel and the configuration of a plan's launch.
template <class Elem, class BlockGroup, bool kCrossEntropy, class Use>
cudaError_t with_config(const FusedPlan& plan, cudaStream_t stream, Use use) {
  if constexpr (kCanStream<Elem, BlockGroup>) {
    if (plan.streamed) {
      return with_kernel<&fused_kernel<Elem, BlockGroup, kCrossEntropy, true>, BlockGroup>(
          plan, stream, use);
    }
  }
  return with_kernel<&fused_kernel<Elem, BlockGroup, kCrossEntropy, false>, BlockGroup>(
      plan, stream, use);
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
  return count_resident<BlockGroup>([&](auto ask) {
    return with_dtype(dtype, [&](auto elem) {
      return with_config<decltype(elem), BlockGroup, false>(plan, nullptr, ask);
    });
  });
}

}  // namespace gkd::cuda
