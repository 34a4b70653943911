// The fused kernels with one cluster per row, and the check that a device grants the cluster.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

GKD_LAUNCH_FUSED_ALL(ClusterGroup)

template <class Elem>
bool grants_cluster(int blocks, std::size_t shared_bytes) {
  const auto kernel = &fused_kernel<Arithmetic<Elem>, Elem, ClusterGroup>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes)) != cudaSuccess ||
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) !=
          cudaSuccess) {
    (void)cudaGetLastError();  // a refusal is an answer, not an error of the call
    return false;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = shared_bytes;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  return clusters > 0;
}

template bool grants_cluster<__half>(int, std::size_t);
template bool grants_cluster<__nv_bfloat16>(int, std::size_t);
template bool grants_cluster<float>(int, std::size_t);
template bool grants_cluster<double>(int, std::size_t);

}  // namespace gkd::cuda
