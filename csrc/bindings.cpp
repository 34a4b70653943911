// _C: build information only; the operators live in libgkd.so, which has no Python in it.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of gkd.";
  m.attr("version") = GKD_VERSION;
  m.attr("torch_version") = GKD_TORCH_VERSION;
}
