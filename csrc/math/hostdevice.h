// The project's one host/device macro. Everything under math/ compiles without torch and without
// CUDA headers, so that CPU kernels, CUDA kernels and tests use the same arithmetic.
#pragma once

#if defined(__CUDACC__)
#define GKD_HD __host__ __device__ __forceinline__
#else
// Always inline: the CPU kernels are compiled once per instruction set, and the linker must not
// replace one copy by another.
#define GKD_HD inline __attribute__((always_inline))
#endif
