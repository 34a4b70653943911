// Kernel launches by the number of threads that serve a row. Each returns the launch's error.
#pragma once

#include "cuda/dependent_launch.cuh"
#include "cuda/workspace.h"

namespace gkd::cuda {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), std::int64_t blocks, int threads, cudaStream_t stream,
                   const Args&... args) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(args...);
  return cudaGetLastError();
}

/// A kernel that calls wait_for_kernel_before(), as a dependent one where the device can.
template <class... Params, class... Args>
cudaError_t launch_early(void (*kernel)(Params...), std::int64_t blocks, int threads,
                         const Device& device, cudaStream_t stream, const Args&... args) {
  LaunchAttributes attributes;
  if (device.launches_early()) attributes.start_early();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = attributes.list;
  config.numAttrs = attributes.count;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

/// One thread per row, for kernels that serve thread_row() if it is one.
template <class Kernel, class... Args>
cudaError_t launch_threads(Kernel kernel, std::int64_t rows, cudaStream_t stream,
                           const Args&... args) {
  return launch(kernel, ceil_div(rows, kPassThreads), kPassThreads, stream, args...);
}
__device__ inline std::int64_t thread_row() {
  return std::int64_t(blockIdx.x) * kPassThreads + threadIdx.x;
}

/// One warp per row, for kernels that serve warp_row() if it is one.
template <class Kernel, class... Args>
cudaError_t launch_warps(Kernel kernel, std::int64_t rows, cudaStream_t stream,
                         const Args&... args) {
  return launch(kernel, ceil_div(rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, stream, args...);
}
__device__ inline std::int64_t warp_row() {
  return std::int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

/// One block per segment of the chunk's rows.
template <class Kernel, class... Args>
cudaError_t launch_segments(Kernel kernel, const Chunk& chunk, cudaStream_t stream,
                            const Args&... args) {
  return launch(kernel, chunk.blocks(), kPassThreads, stream, args...);
}

}  // namespace gkd::cuda
