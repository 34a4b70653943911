// The fused kernels of sparse rows with one block per row.
#include "cuda/sparse/fused_launch.cuh"

namespace gkd::cuda {

template cudaError_t launch_sparse<SingleBlock>(const SparseFusedCall&, cudaStream_t);
template std::int64_t ask_sparse_residency<SingleBlock>(Dtype, const FusedPlan&);

}  // namespace gkd::cuda
