// The fused kernels with a team of a cooperative grid per row.
#include "cuda/fused_launch.cuh"

namespace gkd::cuda {

GKD_LAUNCH_FUSED_ALL(GridTeam)

}  // namespace gkd::cuda
