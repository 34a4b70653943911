// One call of a fused kernel, for a tool that counts its instructions (benchmarks/count_cuda.py).
// No target of the build: with OBJECTS those of the target gkd_kernels, built with
// -Xfatbin=-compress=false,
//   nvcc -std=c++17 -arch=sm_90 -cudart=shared -Xfatbin=-compress=false --expt-relaxed-constexpr
//     -Icsrc benchmarks/cpp/count_cuda.cu OBJECTS -o gkd_count_cuda
// Usage: gkd_count_cuda float32|bfloat16 block|cluster|grid ROWS CLASSES SPREAD all|no_selection
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/fused/plan.h"
#include "cuda/launch.h"

namespace {

using namespace gkd::cuda;
using gkd::Dtype;

/// Normal logits of a spread, in device memory.
template <class Elem>
void* logits(std::int64_t count, float spread, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<Elem> host(static_cast<std::size_t>(count));
  for (Elem& x : host) x = static_cast<Elem>(normal(engine));
  void* device = nullptr;
  cudaMalloc(&device, host.size() * sizeof(Elem));
  cudaMemcpy(device, host.data(), host.size() * sizeof(Elem), cudaMemcpyHostToDevice);
  return device;
}

template <class Elem>
int run(Dtype dtype, const std::string& strategy, std::int64_t rows, std::int64_t classes,
        float spread, bool select) {
  Problem p;
  p.rows = rows;
  p.classes = classes;
  p.student = {logits<Elem>(rows * classes, spread, 1), classes, 1, dtype};
  p.teacher = {logits<Elem>(rows * classes, spread, 2), classes, 1, dtype};
  if (!select) p.selection.threshold = 1;  // its cut is constant
  Device device{1, 231424, 0, false};      // 226 KiB of shared memory, as on an H100
  if (strategy == "cluster")
    device.multiprocessors = 4 * static_cast<int>(rows), device.cluster = 4;
  if (strategy == "grid") device = {4 * static_cast<int>(rows), 231424, 0, true};
  if (strategy == "grid") device.shared_bytes = 65536 + classes * sizeof(Elem) / 2;
  const char* names[] = {"multi_kernel", "block", "cluster", "grid"};
  const char* planned = names[static_cast<int>(plan_fused(p, device).strategy)];
  if (planned != strategy) {
    std::fprintf(stderr, "the plan is %s\n", planned);
    return 1;
  }
  void *gradient, *loss, *grad_scale, *workspace;
  cudaMalloc(&gradient, static_cast<std::size_t>(rows * classes) * sizeof(Elem));
  cudaMalloc(&loss, 8);
  cudaMalloc(&grad_scale, 8);
  cudaMalloc(&workspace, workspace_bytes(p, device));
  const cudaError_t error = forward({p, device}, {loss, grad_scale, gradient}, workspace);
  return error != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const std::string dtype = argv[1], strategy = argv[2];
  const auto rows = std::atoll(argv[3]), classes = std::atoll(argv[4]);
  const auto spread = static_cast<float>(std::atof(argv[5]));
  const bool select = std::string(argv[6]) == "all";
  return dtype == "float32"
             ? run<float>(Dtype::kFloat, strategy, rows, classes, spread, select)
             : run<__nv_bfloat16>(Dtype::kBFloat16, strategy, rows, classes, spread, select);
}
