// Which classes are in the primary group.
//
// - A logit becomes an unsigned key with the same order; -0.0 and +0.0 share one key, and a NaN of
//   either sign ranks above +inf, so that no path has to look at floats again.
// - Selection, however it is done, returns one Cut per row: the smallest key still in the group.
//   Ties at the cut therefore stay together and the group does not depend on the class order.
// - Mass is summed in fixed point: integer sums do not depend on the order of summation.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/hostdevice.h"

namespace gkd {

/// Order-preserving key of an IEEE number given by its bits (16, 32 or 64 wide, sign on top).
template <class Bits>
GKD_HD Bits ordered_key(Bits bits, Bits infinity) {
  const Bits sign = static_cast<Bits>(Bits(1) << (sizeof(Bits) * 8 - 1));
  const Bits magnitude = static_cast<Bits>(bits & static_cast<Bits>(~sign));
  if (magnitude > infinity) return static_cast<Bits>(~Bits(1));  // NaN: above +inf, below "empty"
  if (magnitude == 0) return sign;                               // -0.0 ties with +0.0
  return static_cast<Bits>((bits & sign) ? ~bits : (bits | sign));
}

/// The inverse of ordered_key (up to the sign of zero and the payload of NaN).
template <class Bits>
GKD_HD Bits key_to_bits(Bits key) {
  const Bits sign = static_cast<Bits>(Bits(1) << (sizeof(Bits) * 8 - 1));
  return static_cast<Bits>((key & sign) ? (key & static_cast<Bits>(~sign)) : ~key);
}

/// Key of -inf: below every finite key.
template <class Bits>
GKD_HD Bits lowest_key(Bits infinity) {
  return static_cast<Bits>(
      ~static_cast<Bits>(infinity | static_cast<Bits>(Bits(1) << (sizeof(Bits) * 8 - 1))));
}

/// A row's cut, widened so that every dtype shares one array.
using Cut = std::uint64_t;

/// No key reaches this one: the empty group.
constexpr Cut kEmptyCut = ~Cut(0);

/// Membership in the primary group; `target` is a class index or negative when there is none.
GKD_HD bool in_primary(Cut key, Cut cut, std::int64_t class_index, std::int64_t target) {
  return key >= cut || class_index == target;
}

/// Fixed-point scale of one class's mass relative to the row's largest: the largest power of two
/// for which `classes` of them cannot overflow 63 bits.
GKD_HD double mass_scale(std::int64_t classes) {
  int bits = 62;
  while (bits > 0 && (std::int64_t(1) << (62 - bits)) < classes) --bits;
  return static_cast<double>(std::uint64_t(1) << bits);
}

/// exp(gap) as fixed point, gap = (r - r_max) / T <= 0.
GKD_HD std::uint64_t fixed_mass(double weight, double scale) {
  return static_cast<std::uint64_t>(weight * scale + 0.5);
}

/// m(v) >= threshold, both sides as the same double rounding on every path.
GKD_HD bool mass_reached(std::uint64_t mass, std::uint64_t total, double threshold) {
  return static_cast<double>(mass) >= threshold * static_cast<double>(total);
}

}  // namespace gkd
