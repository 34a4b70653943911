// Which instruction set's kernels run on this machine.
#include "cpu/capability.h"

#include <torch/library.h>

namespace gkd {
namespace cpu {
namespace {

const Capability& best() {
  static const Capability best = capabilities().back();
  return best;
}

std::string capability_name() { return best().name; }

}  // namespace

const Kernels& kernels() { return best().kernels; }
const ShardKernels& shard_kernels(bool wide) { return wide ? best().wide : best().narrow; }

}  // namespace cpu

// It has no tensor to dispatch on.
TORCH_LIBRARY_IMPL(gkd, CatchAll, m) { m.impl("_cpu_capability", &cpu::capability_name); }

}  // namespace gkd
