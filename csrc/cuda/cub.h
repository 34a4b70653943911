// Puts CUB and Thrust into the namespace gkd_cub, because two libraries in one process must not
// define the same symbols; the aliases hide that namespace. Builds define
// THRUST_CUB_WRAPPED_NAMESPACE too, for files that include CUB first.
#pragma once

#define THRUST_CUB_WRAPPED_NAMESPACE gkd_cub

namespace gkd_cub {
namespace cub {}
namespace thrust {}
}  // namespace gkd_cub

namespace gkd::cuda {
namespace cub = gkd_cub::cub;
namespace thrust = gkd_cub::thrust;

/// How reductions and scans combine values: by their own merge().
struct Merge {
  template <class V>
  __device__ __forceinline__ V operator()(V x, const V& y) const {
    x.merge(y);
    return x;
  }
};

}  // namespace gkd::cuda
