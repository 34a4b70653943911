// Shapes and dtypes only, for meta and fake tensors: what the operators return, not written.
#include "shard_call.h"

namespace gkd {
namespace {

// Fake targets have no values to look at.
// NOLINTNEXTLINE(performance-unnecessary-value-param): the dispatcher passes SymInt by value
void check_target_meta(const at::Tensor&, c10::SymInt, std::int64_t) {}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, Meta, m) {
  register_ops<>(m);
  m.impl("_check_target", &check_target_meta);
  register_stages<>(m);
}

}  // namespace gkd
