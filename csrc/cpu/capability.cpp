// Which instruction set's kernels run on this machine.
#include <torch/library.h>

#include "cpu/isa.h"
#include "cpu/row.h"
#include "cpu/shard.h"

namespace gkd {
namespace cpu {
namespace {

struct Capability {
  const char* name;
  Kernels kernels;
  ShardKernels narrow, wide;
};

#define GKD_CAPABILITY(name) \
  { #name, name::kernels(), name::shard_kernels(false), name::shard_kernels(true) }

const Capability& best() {
  static const Capability best = []() -> Capability {
#if defined(__x86_64__)
    if (has_avx512()) return GKD_CAPABILITY(AVX512);
    if (has_avx2()) return GKD_CAPABILITY(AVX2);
#endif
    return GKD_CAPABILITY(DEFAULT);
  }();
  return best;
}
#undef GKD_CAPABILITY

std::string capability_name() { return best().name; }

}  // namespace

const Kernels& kernels() { return best().kernels; }
const ShardKernels& shard_kernels(bool wide) { return wide ? best().wide : best().narrow; }

}  // namespace cpu

// It has no tensor to dispatch on.
TORCH_LIBRARY_IMPL(gkd, CatchAll, m) { m.impl("_cpu_capability", &cpu::capability_name); }

}  // namespace gkd
