// The fused kernels with a group of blocks of a cooperative grid per row.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

template cudaError_t launch_fused<GridGroup>(const FusedCall<float>&, cudaStream_t);
template cudaError_t launch_fused<GridGroup>(const FusedCall<double>&, cudaStream_t);
template std::int64_t ask_residency<GridGroup>(Dtype, const FusedPlan&);

}  // namespace gkd::cuda
