// The fused kernels with one cluster per row, and the check that a device grants the cluster.
#include "cuda/fused/kernel.cuh"

namespace gkd::cuda {

template cudaError_t launch_fused<ClusterGroup>(const FusedCall<float>&, cudaStream_t);
template cudaError_t launch_fused<ClusterGroup>(const FusedCall<double>&, cudaStream_t);

bool grants_cluster(Dtype dtype, const FusedPlan& plan) {
  int clusters = 0;
  const auto count = [&](auto kernel, const cudaLaunchConfig_t& config) {
    return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  };
  const cudaError_t error = with_dtype(dtype, [&](auto elem) {
    return with_config<decltype(elem), ClusterGroup>(plan, nullptr, count);
  });
  if (error != cudaSuccess) (void)cudaGetLastError();  // a refusal is an answer, not an error
  return error == cudaSuccess && clusters > 0;
}

}  // namespace gkd::cuda
