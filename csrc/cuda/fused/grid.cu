// The fused kernels with a group of blocks of a cooperative grid per row.
#include "cuda/fused/launch.cuh"

namespace gkd::cuda {

GKD_LAUNCH_FUSED_ALL(GridGroup)

}  // namespace gkd::cuda
