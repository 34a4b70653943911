// The fused kernels with one block per row.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

template cudaError_t launch_fused<SingleBlock>(const FusedCall<float>&, cudaStream_t);
template cudaError_t launch_fused<SingleBlock>(const FusedCall<double>&, cudaStream_t);
template std::int64_t ask_residency<SingleBlock>(Dtype, const FusedPlan&);

}  // namespace gkd::cuda
