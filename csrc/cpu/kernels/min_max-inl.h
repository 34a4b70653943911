// A row's extremes, segment by segment.
#pragma once

#include "cpu/kernels/load_store-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The largest logit and the smallest finite one; -inf and +inf where there is none.
template <class T>
struct Extremes {
  T high, low;
};

/// Skips NaN.
template <class T>
Extremes<T> extremes_of(const LogitsRow& row, std::int64_t begin, std::int64_t end) {
  using V = VecOf<T>;
  const V none = splat<V>(-kInfinity<T>);
  V high = none, low = none;  // low: the largest of -r
  read_tiles<T>(row, begin, end, [&](std::int64_t, std::int64_t count, const T* r) {
    V top = high, bottom = low;  // copies: a reference would be stored to after each vector
    for (std::int64_t j = 0; j < count; j += kWidth<T>) {
      const V v = load<V>(r + j), negated = v > none ? V(-v) : none;
      top = v > top ? v : top;
      bottom = negated > bottom ? negated : bottom;
    }
    high = top;
    low = bottom;
  });
  return {reduce_max(high), -reduce_max(low)};
}

typedef std::int16_t VecKey16 __attribute__((vector_size(GKD_VEC_BYTES)));
typedef std::uint16_t VecUnsignedKey16 __attribute__((vector_size(GKD_VEC_BYTES)));

/// 16 bits of a logit as an integer of the same order, NaNs beyond the infinities; its own inverse.
template <class K>
K ordered16(K bits) {
  return bits ^ ((bits >> 15) & 0x7fff);
}

/// Contiguous 16-bit logits without conversion, twice as many per vector. A NaN of positive sign
/// counts as +inf, which makes the row NaN too; one of negative sign is skipped.
template <class T>
Extremes<T> extremes_of_half(const LogitsRow& row, std::int64_t begin, std::int64_t end) {
  constexpr int kKeys = sizeof(VecKey16) / 2;
  const auto infinity = static_cast<std::int16_t>(infinity_bits(row.dtype));
  const auto none = static_cast<std::int16_t>(~infinity);  // -inf
  // Maps the smallest finite key to the smallest integer and -inf to the largest.
  const auto offset = static_cast<std::uint16_t>(0x7fff - none);
  VecKey16 high = VecKey16{} + none, low = VecKey16{} + std::int16_t(0x7fff);
  auto add = [&](VecKey16 bits) {
    const VecKey16 key = ordered16(bits);
    const VecKey16 mapped =  // unsigned, since it is meant to wrap
        reinterpret_cast<VecKey16>(reinterpret_cast<VecUnsignedKey16>(key) + offset);
    high = key > high ? key : high;
    low = mapped < low ? mapped : low;
  };
  const auto* logits = static_cast<const std::int16_t*>(row.data);
  VecKey16 bits;
  std::int64_t j = begin;
  for (; j + kKeys <= end; j += kKeys) {
    std::memcpy(&bits, logits + j, sizeof(bits));
    add(bits);
  }
  bits = VecKey16{} + ordered16(none);
  std::memcpy(&bits, logits + j, 2 * (end - j));
  add(bits);
  std::int16_t top = none, bottom = 0x7fff;
  for (int l = 0; l < kKeys; ++l) {
    top = std::max<std::int16_t>(top, high[l]);
    bottom = std::min<std::int16_t>(bottom, low[l]);
  }
  top = std::min(top, infinity);
  const auto lowest = static_cast<std::int16_t>(bottom - offset);
  auto value = [&](std::int16_t key) {
    return scalar_from_bits<T>(static_cast<std::uint16_t>(ordered16(key)), row.dtype);
  };
  return {value(top), lowest == none ? kInfinity<T> : value(lowest)};
}

/// Every segment's largest ranking logit, smallest finite one and largest teacher logit. A NaN may
/// be missed here: it is detected later, in the sums.
template <class T>
void find_extremes(const Row<T>& row, const Executor& executor, std::vector<Segment>& segments) {
  auto extremes = [](const LogitsRow& logits, std::int64_t begin, std::int64_t end) {
    return is_half_row(logits) ? extremes_of_half<T>(logits, begin, end)
                               : extremes_of<T>(logits, begin, end);
  };
  executor(row.segments(), [&](std::int64_t k) {
    const std::int64_t begin = k * kSegment, end = std::min(row.classes, begin + kSegment);
    const Extremes<T> ranking = extremes(row.rank, begin, end);
    segments[k].high = ranking.high;
    segments[k].low = ranking.low;
    segments[k].teacher_high = row.by_student ? extremes(row.u, begin, end).high : ranking.high;
  });
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
