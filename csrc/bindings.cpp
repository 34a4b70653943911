// _C: build information only; the operators live in libgkd.so, which has no Python in it.
#include <pybind11/pybind11.h>

#ifndef GKD_CUDA_VERSION
#define GKD_CUDA_VERSION ""
#endif
#ifndef GKD_CUDA_ARCHITECTURES
#define GKD_CUDA_ARCHITECTURES ""
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of gkd.";
  m.attr("version") = GKD_VERSION;
  m.attr("torch_version") = GKD_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cuda_version") = GKD_CUDA_VERSION;
  m.attr("cuda_architectures") = GKD_CUDA_ARCHITECTURES;
}
