// Ordered keys of logits, and the search among them for a row's cut: exact integer amounts by key,
// 2,048 bins at a time, until a bin is one key. Blocks, devices and ranks add up the same bins.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "math/histogram.h"

namespace gkd {

/// Bits of the key that one spread resolves: 2,048 bins of 8 bytes leave room for six blocks'
/// shared memory on a multiprocessor, and are 16 KiB of a row's traffic between ranks.
constexpr int kRadixBits = 11;

template <class T>
using KeyOf = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned int>;

/// Explicit significand bits of a backend's Dtype.
template <class Dtype>
GKD_HD int fraction_bits(Dtype dtype) {
  return dtype == Dtype::kHalf       ? 10
         : dtype == Dtype::kBFloat16 ? 7
         : dtype == Dtype::kFloat    ? 23
                                     : 52;
}

/// The place of the highest bit that is set, from 1; 0 for 0.
GKD_HD int bit_width(unsigned long long x) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(x));
#else
  return x == 0 ? 0 : 64 - __builtin_clzll(x);
#endif
}

/// Ordered keys of the arithmetic's type, without the low bits that the input's dtype leaves equal:
/// a 16-bit row then takes a spread less.
template <class T>
struct Keys {
  int unit = 0;

  Keys() = default;  ///< whole keys
  template <class Dtype>
  GKD_HD explicit Keys(Dtype ranking) : unit((sizeof(T) == 8 ? 52 : 23) - fraction_bits(ranking)) {}

  GKD_HD KeyOf<T> of(T r) const {
    KeyOf<T> bits;
    memcpy(&bits, &r, sizeof(T));
    return ordered_key<KeyOf<T>>(bits, infinity()) >> unit;
  }
  GKD_HD T logit(KeyOf<T> key) const {
    KeyOf<T> whole = key << unit;
    // Below zero the order turns the bits around: what was cut off were ones.
    if (!(whole >> (8 * sizeof(T) - 1))) whole |= (KeyOf<T>(1) << unit) - 1;
    const KeyOf<T> bits = key_to_bits(whole);
    T r;
    memcpy(&r, &bits, sizeof(T));
    return r;
  }
  /// Spreads after which any search has found its key.
  GKD_HD int num_passes() const {
    return (8 * static_cast<int>(sizeof(T)) - unit + kRadixBits - 1) / kRadixBits;
  }

 private:
  GKD_HD static KeyOf<T> infinity() {
    return sizeof(T) == 8 ? static_cast<KeyOf<T>>(0x7ff0000000000000ull) : KeyOf<T>(0x7f800000u);
  }
};

/// The keys that may still be the cut, and the amounts above them and of the whole row.
template <class T>
struct RadixSearch {
  KeyOf<T> high, low;
  unsigned long long above, total;

  /// Keys of one bin of the next spread: 2^shift.
  GKD_HD int bin_bits() const {
    const int bits = bit_width(high - low);
    return bits > kRadixBits ? bits - kRadixBits : 0;
  }
  GKD_HD bool found() const { return high == low; }
  GKD_HD bool holds(KeyOf<T> key) const { return key <= high && key >= low; }
  GKD_HD int bin(KeyOf<T> key, int shift) const { return static_cast<int>((high - key) >> shift); }

  /// The search inside one bin of a spread by `shift`; `over`: what the bins before it hold.
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

}  // namespace gkd
