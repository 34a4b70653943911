// What planted.cpp is to the CPU's sanitizers, for compute-sanitizer's tools: gkd_planted TOOL has
// the error that the tool of that name finds, "none" has none.
#include <cuda_runtime.h>

#include <cstdio>
#include <string>

namespace {

constexpr int kThreads = 64;

__global__ void clean(int* to) { to[threadIdx.x] = threadIdx.x; }

__global__ void out_of_bounds(int* to) { to[threadIdx.x + kThreads] = 1; }

/// Warps read each other's shared memory, and no barrier stands between.
__global__ void race(int* to) {
  __shared__ int held[kThreads];
  held[threadIdx.x] = threadIdx.x;
  to[threadIdx.x] = held[kThreads - 1 - threadIdx.x];
}

__global__ void uninitialised(const int* from, int* to) { to[threadIdx.x] = from[threadIdx.x]; }

/// Half a warp comes to a barrier that names the whole of it.
__global__ void divergent(int* to) {
  if (threadIdx.x < 16) __syncthreads();
  to[threadIdx.x] = 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string tool = argc > 1 ? argv[1] : "";
  int *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, kThreads * sizeof(int)) != cudaSuccess ||
      cudaMalloc(&to, kThreads * sizeof(int)) != cudaSuccess) {
    return 3;
  }
  if (tool == "memcheck") out_of_bounds<<<1, kThreads>>>(to);
  if (tool == "racecheck") race<<<1, kThreads>>>(to);
  if (tool == "initcheck") uninitialised<<<1, kThreads>>>(from, to);
  if (tool == "synccheck") divergent<<<1, kThreads>>>(to);
  if (tool == "none") clean<<<1, kThreads>>>(to);
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s\n", cudaGetErrorString(error));
  cudaFree(from);
  cudaFree(to);
  // It is the tool that must notice an error that is planted.
  return tool == "none" && error != cudaSuccess ? 1 : 0;
}
