// The fused kernels with one block per row.
#include "cuda/fused_launch.cuh"

namespace gkd::cuda {

GKD_LAUNCH_FUSED_ALL(BlockTeam)

}  // namespace gkd::cuda
