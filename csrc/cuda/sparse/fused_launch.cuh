// Launches of the fused kernels of sparse rows, and what a device says of them.
#pragma once

#include "cuda/fused/config.cuh"
#include "cuda/sparse/kernel.cuh"

namespace gkd::cuda {

template <class BlockGroup>
cudaError_t launch_sparse(const SparseFusedCall& call, cudaStream_t stream) {
  const auto start = [&](auto kernel, const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, call);
  };
  return with_element<float>(call.p.student.dtype, [&](auto elem) {
    using Elem = decltype(elem);
    return call.p.weights.cross_entropy != 0
               ? with_kernel<&sparse_kernel<Elem, BlockGroup, true>, BlockGroup>(call.plan, stream,
                                                                                 start)
               : with_kernel<&sparse_kernel<Elem, BlockGroup, false>, BlockGroup>(call.plan, stream,
                                                                                  start);
  });
}

template <class BlockGroup>
std::int64_t ask_sparse_residency(Dtype dtype, const FusedPlan& plan) {
  return count_resident<BlockGroup>([&](auto ask) {
    return with_element<float>(dtype, [&](auto elem) {
      return with_kernel<&sparse_kernel<decltype(elem), BlockGroup, false>, BlockGroup>(
          plan, nullptr, ask);
    });
  });
}

}  // namespace gkd::cuda
