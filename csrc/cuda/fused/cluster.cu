// The fused kernels with one cluster per row.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

template cudaError_t launch_fused<ClusterGroup>(const FusedCall<float>&, cudaStream_t);
template cudaError_t launch_fused<ClusterGroup>(const FusedCall<double>&, cudaStream_t);
template std::int64_t ask_residency<ClusterGroup>(Dtype, const FusedPlan&);

}  // namespace gkd::cuda
