// The collectives of class-sharded losses: torch's functional ones, called through the dispatcher.
// NCCL or gloo, traced by torch.compile, and no link to torch's distributed library.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace gkd {

/// The ranks that hold the other classes.
struct Ranks {
  std::int64_t world_size;
  std::string group_name;

  at::Tensor reduce(const at::Tensor& t, const char* how) const {
    return wait(collective("all_reduce", {t, how, group_name}));
  }
  /// [...] -> [W, ...]
  at::Tensor gather(const at::Tensor& t) const {
    const at::Tensor all = wait(collective("all_gather_into_tensor", {t, world_size, group_name}));
    auto shape = t.sym_sizes().vec();
    shape.insert(shape.begin(), world_size);
    return all.view_symint(shape);
  }

 private:
  // Boxed: how C++ sees a string argument differs between versions of torch.
  static at::Tensor collective(const char* name, torch::jit::Stack stack) {
    const auto op =
        c10::Dispatcher::singleton().findSchema({std::string("_c10d_functional::") + name, ""});
    TORCH_CHECK_NOT_IMPLEMENTED(op, "gkd::sharded_loss needs a torch with torch.distributed");
    op->callBoxed(stack);
    return stack.front().toTensor();
  }
  static at::Tensor wait(const at::Tensor& t) { return collective("wait_tensor", {t}); }
};

}  // namespace gkd
