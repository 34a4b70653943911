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
  const auto* in = static_cast<const std::uint16_t*>(from);
  auto* out = static_cast<std::uint16_t*>(to);
  VecU16 v{};
  std::int64_t j = 0;
  for (; j + kFloats <= count; j += kFloats) {
    std::memcpy(&v, in + j, sizeof(v));
    v = narrow(widen(v, dtype) * factor, dtype);
    std::memcpy(out + j, &v, sizeof(v));
  }
  if (j == count) return;
  const std::size_t rest = 2 * static_cast<std::size_t>(count - j);
  std::memcpy(&v, in + j, rest);
  v = narrow(widen(v, dtype) * factor, dtype);
  std::memcpy(out + j, &v, rest);
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
