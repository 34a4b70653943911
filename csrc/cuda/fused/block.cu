// The fused kernels with one block per row.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

GKD_LAUNCH_FUSED_ALL(SingleBlock)

}  // namespace gkd::cuda
