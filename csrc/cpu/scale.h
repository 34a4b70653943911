// The backward's multiplication, in at least float, rounded once.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include "cpu/blocks.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

inline void scale_row(const void* from, void* to, Dtype dtype, std::int64_t count, double scale) {
  if (dtype == Dtype::kDouble) {
    const double* in = static_cast<const double*>(from);
    double* out = static_cast<double*>(to);
    for (std::int64_t j = 0; j < count; ++j) out[j] = in[j] * scale;
    return;
  }
  const float factor = static_cast<float>(scale);
  if (dtype == Dtype::kFloat) {
    const float* in = static_cast<const float*>(from);
    float* out = static_cast<float*>(to);
    for (std::int64_t j = 0; j < count; ++j) out[j] = in[j] * factor;
    return;
  }
  alignas(64) float block[kBlock];
  for (std::int64_t j = 0; j < count; j += kBlock) {
    const std::int64_t n = std::min(kBlock, count - j);
    widen_row(static_cast<const std::uint16_t*>(from) + j, dtype, n, block);
    for (float& x : block) x *= factor;
    narrow_row(block, dtype, n, static_cast<std::uint16_t*>(to) + j);
  }
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
