// The fused kernels of sparse rows with a cooperative grid per row.
#include "cuda/sparse/fused_launch.cuh"

namespace gkd::cuda {

template cudaError_t launch_sparse<GridGroup>(const SparseFusedCall&, cudaStream_t);
template std::int64_t ask_sparse_residency<GridGroup>(Dtype, const FusedPlan&);

}  // namespace gkd::cuda
