// Programmatic dependent launch (CUDA C++ Programming Guide): a kernel starts while the one before
// it in the stream still runs, and waits for it where it needs its results. Between two kernels
// that saves the launch and the tail. From compute capability 9.0 on; elsewhere a kernel starts
// when the one before it has ended, and these functions do nothing.
#pragma once

#include <cuda_runtime_api.h>

namespace gkd::cuda {

/// Attributes of a launch; room for those that gkd uses.
struct LaunchAttributes {
  cudaLaunchAttribute list[2];
  unsigned count = 0;

  cudaLaunchAttributeValue& add(cudaLaunchAttributeID id) {
    list[count] = {};
    list[count].id = id;
    return list[count++].val;
  }
  /// The kernel has to call wait_for_kernel_before(). Before 12.3 such a launch could not be
  /// captured in a graph.
  void start_early() {
#if CUDART_VERSION >= 12030
    add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed =
        1;
#endif
  }
};

/// Lets the next kernel's blocks start as this one's blocks leave room for them.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the kernel before has ended and its results are visible. What that kernel only reads
/// can be read before.
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace gkd::cuda
