// The dtypes of logits, named for code that does not include torch.
#pragma once

#include <cstdint>

#include "math/hostdevice.h"

namespace gkd {

enum class Dtype : std::int32_t { kHalf, kBFloat16, kFloat, kDouble };

/// In bytes.
GKD_HD int element_size(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
}

/// Explicit significand bits.
GKD_HD int fraction_bits(Dtype dtype) {
  return dtype == Dtype::kHalf       ? 10
         : dtype == Dtype::kBFloat16 ? 7
         : dtype == Dtype::kFloat    ? 23
                                     : 52;
}

/// The bit pattern of +inf: all exponent bits, which lie between the sign and the significand.
GKD_HD std::uint64_t infinity_bits(Dtype dtype) {
  const int fraction = fraction_bits(dtype), sign = 8 * element_size(dtype) - 1;
  return (std::uint64_t(1) << sign) - (std::uint64_t(1) << fraction);
}

}  // namespace gkd
