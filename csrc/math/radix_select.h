// Ordered keys of logits, and the radix search among them for a row's cut: exact integer weights by
// key, 2,048 bins a pass, until a bin is one key. Blocks, devices and ranks add up the same bins.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "math/dtype.h"
#include "math/histogram.h"

namespace gkd {

/// Radix bits per pass. 2^11 bins x 8 B = 16 KiB of shared memory: six blocks fit on an SM. Between
/// ranks that is a row's traffic per pass.
constexpr int kRadixBits = 11;

template <class T>
using KeyOf = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned int>;

/// std::bit_width for host and device.
GKD_HD int bit_width(unsigned long long x) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(x));
#else
  return x == 0 ? 0 : 64 - __builtin_clzll(x);
#endif
}

/// Ordered keys of the arithmetic's type, with the trailing bits that the input's dtype never sets
/// shifted out: a 16-bit input then saves one pass.
template <class T>
struct Keys {
  int unit = 0;  ///< bits shifted out

  Keys() = default;  ///< whole keys
  GKD_HD explicit Keys(Dtype ranking) : unit(fraction_bits(kArithmetic) - fraction_bits(ranking)) {}

  GKD_HD KeyOf<T> of(T r) const {
    KeyOf<T> bits;
    memcpy(&bits, &r, sizeof(T));
    return ordered_key<KeyOf<T>>(bits, static_cast<KeyOf<T>>(infinity_bits(kArithmetic))) >> unit;
  }
  GKD_HD T logit(KeyOf<T> key) const {
    KeyOf<T> whole = key << unit;
    // The keys of negative numbers are inverted: the bits that were shifted out were ones.
    if (!(whole >> (8 * sizeof(T) - 1))) whole |= (KeyOf<T>(1) << unit) - 1;
    const KeyOf<T> bits = key_to_bits(whole);
    T r;
    memcpy(&r, &bits, sizeof(T));
    return r;
  }
  /// Passes after which any search has found its key.
  GKD_HD int num_passes() const {
    return (8 * static_cast<int>(sizeof(T)) - unit + kRadixBits - 1) / kRadixBits;
  }

 private:
  static constexpr Dtype kArithmetic = sizeof(T) == 8 ? Dtype::kDouble : Dtype::kFloat;
};

/// The keys that may still be the cut, and the weights above them and of the whole row.
template <class T>
struct RadixSearch {
  KeyOf<T> high, low;
  unsigned long long above, total;

  /// Each bin of the next pass has 2^bin_bits() keys.
  GKD_HD int bin_bits() const {
    const int bits = bit_width(high - low);
    return bits > kRadixBits ? bits - kRadixBits : 0;
  }
  GKD_HD bool found() const { return high == low; }
  GKD_HD bool holds(KeyOf<T> key) const { return key <= high && key >= low; }
  GKD_HD int bin(KeyOf<T> key, int shift) const { return static_cast<int>((high - key) >> shift); }

  /// The search inside one bin of a pass by `shift`; `over`: the weight of the bins before it.
  GKD_HD RadixSearch refined(int bin, int shift, unsigned long long over) const {
    RadixSearch next = *this;
    next.above += over;
    next.high -= static_cast<KeyOf<T>>(bin) << shift;
    const KeyOf<T> width = (KeyOf<T>(1) << shift) - 1;
    const KeyOf<T> least = next.high >= width ? next.high - width : 0;
    next.low = least > low ? least : low;
    return next;
  }
};

/// The search before the first pass: every key up to the row's largest. The total, and what is
/// above the bins that may hold the cut, are known after that pass.
template <class T>
GKD_HD RadixSearch<T> first_search(const Keys<T>& keys, T high) {
  return {keys.of(high), 0, 0, 0};
}

}  // namespace gkd
