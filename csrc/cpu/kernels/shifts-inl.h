// What is known of a row before its sums: extremes, and the shifts subtracted before exp(), one
// pair per group. And the test for invalid rows.
//
// Shifts are guessed first: the teacher's largest logit serves both groups. Where a group is so
// much smaller that its terms lose digits, sums_are_accurate() sees it in the sums, and
// exact_shifts() searches the row.
#pragma once

#include <cmath>

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
  constexpr int kChains =
      std::is_same_v<T, float> ? 4 : 8;  // independent, since each has a latency
  const V none = splat<V>(-kInfinity<T>);
  V high[kChains], low[kChains];  // low: the largest of -r
  for (V* v : {high, low}) std::fill(v, v + kChains, none);
  const auto add = [none](V v, V* top, V* bottom) {
    const V negated = v > none ? V(-v) : none;
    *top = v > *top ? v : *top;
    *bottom = negated > *bottom ? negated : *bottom;
  };
  read_tiles<T>(row, begin, end, [&](std::int64_t count, const T* r) {
    V top[kChains], bottom[kChains];  // copies: a reference would be stored to after each vector
    std::copy(high, high + kChains, top);
    std::copy(low, low + kChains, bottom);
    constexpr std::int64_t kStep = kChains * kWidth<T>;
    std::int64_t j = 0;
    for (; j + kStep <= padded<T>(count); j += kStep) {
      for (int l = 0; l < kChains; ++l) add(load<V>(r + j + l * kWidth<T>), top + l, bottom + l);
    }
    for (; j < count; j += kWidth<T>) add(load<V>(r + j), top, bottom);
    std::copy(top, top + kChains, high);
    std::copy(bottom, bottom + kChains, low);
  });
  Extremes<T> result{-kInfinity<T>, kInfinity<T>};
  for (int l = 0; l < kChains; ++l) {
    result.high = std::max(result.high, reduce_max(high[l]));
    result.low = std::min(result.low, -reduce_max(low[l]));
  }
  return result;
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
  std::int64_t j = begin;
  for (; j + kKeys <= end; j += kKeys) add(load<VecKey16>(logits + j));
  VecKey16 rest = VecKey16{} + ordered16(none);
  std::memcpy(&rest, logits + j, 2 * (end - j));
  add(rest);
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

/// The first class of [begin, end) whose teacher logit lies in [low, high]; -1: none.
template <class T>
std::int64_t find_teacher(const Row<T>& row, std::int64_t begin, std::int64_t end, T low, T high) {
  using V = VecOf<T>;
  alignas(64) T buffer[kTile];
  for (std::int64_t j = begin; j < end; j += kTile) {
    const std::int64_t count = std::min(kTile, end - j);
    const T* u = read_tile(row.u, j, count, buffer);
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V v = load<V>(u + k);
      const unsigned bits = movemask((v >= low) & (v <= high));
      if (bits != 0) return std::min(j + k + __builtin_ctz(bits), end - 1);
    }
  }
  return -1;
}

/// Both groups relative to the teacher's maximum. Primary: with the student logit of that class.
/// Rest: with the student shift taken from a class of the rest, so that its terms keep their
/// digits; classes ranked under `low` are in it.
template <class T>
void guess_shifts(const Row<T>& row, T low, T temperature, const std::vector<Segment>& segments,
                  Shift<T> (&shift)[2]) {
  std::int64_t best = 0;
  for (std::int64_t k = 1; k < row.segments(); ++k) {
    if (segments[k].teacher_high > segments[best].teacher_high) best = k;
  }
  const T high = static_cast<T>(segments[best].teacher_high);
  const std::int64_t first = best * kSegment, last = std::min(row.classes, first + kSegment);
  // A shard may be all NaN, which compares with nothing: then any class serves.
  const std::int64_t top = std::max(find_teacher(row, first, last, high, high), first);
  const T student = read_one<T>(row.s, top);
  shift[0] = shift[1] = {high, finite_or_zero(student)};

  // Searching the first segment is enough. Ranked by the student, the first class will do.
  const std::int64_t search_end = std::min(row.classes, kSegment);
  std::int64_t other = row.by_student ? 0 : -1;
  if (!row.by_student && low < kInfinity<T>) {
    const T below = std::nextafter(low, -kInfinity<T>);
    other = find_teacher(row, 0, search_end, below - 4 * temperature, below);
  }
  if (other < 0) return;
  const T u = read_one<T>(row.u, other), s = read_one<T>(row.s, other);
  const T shifted = high - (u - s);
  if (std::isfinite(shifted)) shift[1].student = shifted;
}

/// Groups up to this size get exact shifts where they have a KL.
inline constexpr long long kFewClasses = 64;

/// Whether no sum can have lost digits by the shift it was taken with: an exponent of x is rounded
/// to x 2^-24, so sums very different from 1 are off by more than the promised 2e-6. Where the rest
/// has no KL only its mass counts, which may be small: 1e-12 is 28 nats, 1.6e-6.
inline bool sums_are_accurate(const GroupMoments<double> (&group)[2], bool rest_has_kl) {
  for (int g = 0; g < 2; ++g) {
    const GroupMoments<double>& m = group[g];
    // Where every class is in the group, the rest may still have the NaN of a class that ranks NaN.
    if (m.count == 0 && m.sum_teacher == 0 && m.sum_student == 0) continue;
    const double least = g == 0 || rest_has_kl ? 1e-4 : 1e-12;
    const double most = 1e4 + static_cast<double>(m.count);
    for (double sum : {m.sum_teacher, m.sum_student}) {
      if (!(sum >= least && sum <= most)) return false;
    }
  }
  return true;
}

/// NaN or +inf in either row or, in a whole row but not in a shard, nothing but -inf.
template <class T>
bool is_invalid(const Row<T>& row, bool whole) {
  for (const LogitsRow* logits : {&row.s, &row.u}) {
    bool has_finite = false, invalid = false;
    read_tiles<T>(*logits, 0, row.classes, [&](std::int64_t count, const T* v) {
      for (std::int64_t k = 0; k < count; ++k) {
        invalid |= !(v[k] < kInfinity<T>);
        has_finite |= v[k] > -kInfinity<T>;
      }
    });
    if (invalid || (whole && !has_finite)) return true;
  }
  return false;
}

/// The largest teacher logit of each group and the student logit of that class, unless the group's
/// largest student logit is so much larger that b would overflow.
template <class T>
void exact_shifts(const Row<T>& row, T cut, T temperature, Shift<T> (&shift)[2]) {
  T student_high[2] = {-kInfinity<T>, -kInfinity<T>}, student_at_top[2] = {T(0), T(0)};
  shift[0] = shift[1] = {-kInfinity<T>, -kInfinity<T>};
  // Not for_each_tile(), which the compiler inlines into the passes as long as these alone call it.
  typename Row<T>::Buffers buffers;
  for (std::int64_t j = 0; j < row.classes; j += kTile) {
    const std::int64_t count = std::min(kTile, row.classes - j);
    row.visit_tile(j, count, &buffers, [&](Tile<T> s, Tile<T> u, Tile<T> r, Tile<T>) {
      for (std::int64_t k = 0; k < count; ++k) {
        const int g = r.data[k] >= cut ? 0 : 1;
        student_high[g] = std::max(student_high[g], s.data[k]);
        if (!(u.data[k] > shift[g].teacher)) continue;
        shift[g].teacher = u.data[k];
        student_at_top[g] = s.data[k];
      }
    });
  }
  for (int g = 0; g < 2; ++g) {
    const bool fits = (student_high[g] - student_at_top[g]) / temperature <= T(40);
    shift[g].student = finite_or_zero(fits ? student_at_top[g] : student_high[g]);
    shift[g].teacher = finite_or_zero(shift[g].teacher);
  }
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
