// A row's extremes, segment by segment.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include "cpu/blocks.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The largest logit and the smallest finite one; -inf and +inf where there is none.
template <class T>
struct Extremes {
  T high, low;
};

/// A NaN is passed over.
template <class T>
Extremes<T> extremes_of(const LogitsRow& row, std::int64_t begin, std::int64_t end) {
  using V = VecOf<T>;
  const V none = splat<V>(-kInfinity<T>);
  V high = none, low = none;  // low: the largest of -r
  each_of<T>(row, begin, end, [&](std::int64_t, std::int64_t count, const T* r) {
    V top = high, bottom = low;  // by value: a reference would be stored to at each pack
    for (std::int64_t j = 0; j < count; j += kWidth<T>) {
      const V v = load<V>(r + j), down = v > none ? V(-v) : none;
      top = v > top ? v : top;
      bottom = down > bottom ? down : bottom;
    }
    high = top;
    low = bottom;
  });
  return {reduce_max(high), -reduce_max(low)};
}

typedef std::int16_t KeyPack __attribute__((vector_size(GKD_VEC_BYTES)));
typedef std::uint16_t WrappingKeyPack __attribute__((vector_size(GKD_VEC_BYTES)));

/// 16 bits of a logit as an integer of the same order, NaNs beyond the infinities; its own inverse.
template <class K>
K ordered16(K bits) {
  return bits ^ ((bits >> 15) & 0x7fff);
}

/// Contiguous 16-bit logits without conversion, twice as many a pack. A NaN of positive sign counts
/// as +inf, which makes the row NaN too; one of negative sign is passed over.
template <class T>
Extremes<T> extremes_of_half(const LogitsRow& row, std::int64_t begin, std::int64_t end) {
  constexpr int kKeys = sizeof(KeyPack) / 2;
  const std::int16_t infinity = row.dtype == Dtype::kHalf ? 0x7c00 : 0x7f80;
  const std::int16_t none = static_cast<std::int16_t>(~infinity);  // -inf
  // Moves the smallest finite key to the smallest integer and -inf to the largest.
  const std::uint16_t lift = static_cast<std::uint16_t>(0x7fff - none);
  KeyPack high = KeyPack{} + none, low = KeyPack{} + std::int16_t(0x7fff);
  auto add = [&](KeyPack bits) {
    const KeyPack key = ordered16(bits);
    const KeyPack lifted =  // without a sign, since it is meant to wrap
        reinterpret_cast<KeyPack>(reinterpret_cast<WrappingKeyPack>(key) + lift);
    high = key > high ? key : high;
    low = lifted < low ? lifted : low;
  };
  const auto* at = static_cast<const std::int16_t*>(row.data);
  KeyPack bits;
  std::int64_t j = begin;
  for (; j + kKeys <= end; j += kKeys) {
    std::memcpy(&bits, at + j, sizeof(bits));
    add(bits);
  }
  bits = KeyPack{} + ordered16(none);
  std::memcpy(&bits, at + j, 2 * (end - j));
  add(bits);
  std::int16_t top = none, bottom = 0x7fff;
  for (int l = 0; l < kKeys; ++l) {
    top = std::max<std::int16_t>(top, high[l]);
    bottom = std::min<std::int16_t>(bottom, low[l]);
  }
  top = std::min(top, infinity);
  const auto lowest = static_cast<std::int16_t>(bottom - lift);
  auto value = [&](std::int16_t key) {
    return widen_one<T>(static_cast<std::uint16_t>(ordered16(key)), row.dtype);
  };
  return {value(top), lowest == none ? kInfinity<T> : value(lowest)};
}

/// Every segment's largest ranking logit, smallest finite one and largest teacher logit. A NaN may
/// pass: the sums show it.
template <class T>
void find_extremes(const Row<T>& row, bool by_student, const Executor& each,
                   std::vector<Segment>& segments) {
  auto extremes = [](const LogitsRow& from, std::int64_t begin, std::int64_t end) {
    return is_half_row(from) ? extremes_of_half<T>(from, begin, end)
                             : extremes_of<T>(from, begin, end);
  };
  each(row.segments(), [&](std::int64_t k) {
    const std::int64_t begin = k * kSegment, end = std::min(row.classes, begin + kSegment);
    const Extremes<T> found = extremes(row.rank, begin, end);
    segments[k].high = found.high;
    segments[k].low = found.low;
    segments[k].teacher_high = by_student ? extremes(row.u, begin, end).high : found.high;
  });
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
