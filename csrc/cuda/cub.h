// Include before any CUB or Thrust header: two libraries in one process must not share CUB's
// symbols, so ours lives in a namespace of its own, which the aliases hide again.
#pragma once

#define THRUST_CUB_WRAPPED_NAMESPACE gkd_cub

namespace gkd_cub {
namespace cub {}
namespace thrust {}
}  // namespace gkd_cub

namespace gkd::cuda {
namespace cub = gkd_cub::cub;
namespace thrust = gkd_cub::thrust;
}  // namespace gkd::cuda
