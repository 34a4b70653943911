// The multiplication in the backward, in at least float, rounded once.
#pragma once

#include "cpu/kernels/simd-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
void scale_as(const void* in, void* out, std::int64_t count, T factor) {
  const T* x = static_cast<const T*>(in);
  T* y = static_cast<T*>(out);
  for (std::int64_t j = 0; j < count; ++j) y[j] = x[j] * factor;
}

inline void scale_row(const void* in, void* out, Dtype dtype, std::int64_t count, double factor) {
  if (dtype == Dtype::kDouble) return scale_as<double>(in, out, count, factor);
  const float float_factor = static_cast<float>(factor);
  if (dtype == Dtype::kFloat) return scale_as<float>(in, out, count, float_factor);
  const auto* x = static_cast<const std::uint16_t*>(in);
  auto* y = static_cast<std::uint16_t*>(out);
  const auto scaled = [&](VecU16 v) {
    return from_float(to_float(v, dtype) * float_factor, dtype);
  };
  VecU16 v{};
  std::int64_t j = 0;
  for (; j + kFloats <= count; j += kFloats) {
    v = scaled(load_u16(x + j));
    std::memcpy(y + j, &v, sizeof(v));
  }
  if (j == count) return;
  const std::size_t rest = 2 * static_cast<std::size_t>(count - j);
  std::memcpy(&v, x + j, rest);
  v = scaled(v);
  std::memcpy(y + j, &v, rest);
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
