// The cut of a row, the smallest ranking logit in its group, without sorting the row.
//
// - estimate_range() counts classes by logit in up to 2,048 bins, without one exponential, and
// estimates
//   from the counts a narrow window that holds the cut. It promises nothing: the sums over the row
//   then weigh both sides of the window exactly, in integers, and resolve() finds the cut inside.
// - exact_cut() needs no luck: radix selection over ordered keys, three passes over a float row. It
//   serves rows that the estimate_range cannot narrow.
// - sorted_cut() sorts. All three weigh classes by the same integers, so all give the same cut.
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <functional>

#include "cpu/sweeps.h"
#include "math/histogram.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The amounts of `count` keys.
template <class T>
void class_weights(const StopRule& goal, const MassRule<T>& rule, const T* keys, std::int64_t count,
                   std::uint64_t* amounts) {
  if (goal.by_mass) {
    masses_of(rule, keys, count, amounts);
  } else {
    std::fill(amounts, amounts + count, 1);
  }
}

/// The first of `keys`, in descending order and on top of `above`, at which the goal is is_met;
/// false where none does. Halves until few are left: linear in all.
template <class T>
bool resolve(const StopRule& goal, const MassRule<T>& rule, std::vector<T>& keys,
             std::uint64_t above, std::uint64_t total, T* cut) {
  constexpr std::int64_t kFew = 64;
  std::int64_t first = 0, last = static_cast<std::int64_t>(keys.size());
  auto amount = [&](std::int64_t from, std::int64_t to) {
    alignas(64) T block[kBlock];
    std::uint64_t amounts[kBlock], sum = 0;
    for (std::int64_t j = from; j < to; j += kBlock) {
      const std::int64_t count = std::min(kBlock, to - j);
      std::copy(keys.begin() + j, keys.begin() + j + count, block);
      std::fill(block + count, block + padded<T>(count), -kInfinity<T>);
      class_weights(goal, rule, block, count, amounts);
      for (std::int64_t k = 0; k < count; ++k) sum += amounts[k];
    }
    return sum;
  };
  while (last - first > kFew) {
    const std::int64_t middle = first + (last - first) / 2;
    std::nth_element(keys.begin() + first, keys.begin() + middle, keys.begin() + last,
                     std::greater<T>());
    const std::uint64_t upper = amount(first, middle);
    if (goal.is_met(above + upper, total)) {
      last = middle;
    } else {
      above += upper;
      first = middle;
    }
  }
  std::sort(keys.begin() + first, keys.begin() + last, std::greater<T>());
  for (std::int64_t j = first; j < last; ++j) {
    above += amount(j, j + 1);
    if (goal.is_met(above, total)) {
      *cut = keys[j];
      return true;
    }
  }
  return false;
}

template <class T>
T sorted_cut(const Row<T>& row, const StopRule& goal, const MassRule<T>& rule) {
  std::vector<T> keys;
  keys.reserve(row.classes);
  std::uint64_t total = 0, amounts[kBlock];
  row.each_rank(0, row.classes, [&](std::int64_t, std::int64_t count, const T* r) {
    class_weights(goal, rule, r, count, amounts);
    for (std::int64_t k = 0; k < count; ++k) total += amounts[k];
    keys.insert(keys.end(), r, r + count);
  });
  std::sort(keys.begin(), keys.end(), std::greater<T>());
  std::uint64_t above = 0;
  alignas(64) T block[kBlock];
  for (std::int64_t j = 0; j < row.classes; j += kBlock) {
    const std::int64_t count = std::min(kBlock, row.classes - j);
    std::copy(keys.begin() + j, keys.begin() + j + count, block);
    std::fill(block + count, block + padded<T>(count), -kInfinity<T>);
    class_weights(goal, rule, block, count, amounts);
    for (std::int64_t k = 0; k < count; ++k) {
      above += amounts[k];
      if (goal.is_met(above, total)) return block[k];
    }
  }
  return keys.back();
}

template <class T>
T exact_cut(const Row<T>& row, const StopRule& goal, const MassRule<T>& rule, Scratch* scratch) {
  using Bits = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
  constexpr int kDigit = 11, kBits = 8 * sizeof(Bits);
  constexpr Bits kMask = (Bits(1) << kDigit) - 1;
  Bits infinity;
  const T inf = kInfinity<T>;
  std::memcpy(&infinity, &inf, sizeof(T));
  Bits prefix = 0;
  std::uint64_t above = 0, total = 0, amounts[kBlock];
  std::vector<std::uint64_t>& totals = scratch->masses;
  std::vector<std::int32_t>& counts = scratch->counts;
  for (int known = 0; known < kBits;) {
    const int width = std::min(kDigit, kBits - known), shift = kBits - known - width;
    totals.assign(kMask + 1, 0);
    counts.assign(kMask + 1, 0);
    row.each_rank(0, row.classes, [&](std::int64_t, std::int64_t count, const T* r) {
      class_weights(goal, rule, r, count, amounts);
      for (std::int64_t k = 0; k < count; ++k) {
        Bits bits;
        std::memcpy(&bits, r + k, sizeof(T));
        const Bits key = ordered_key(bits, infinity);
        // Shifted in two steps: a shift by the whole width is undefined.
        if (known > 0 && ((key >> (kBits - known - 1)) >> 1) != prefix) continue;
        const Bits digit = (key >> shift) & ((Bits(1) << width) - 1);
        totals[digit] += amounts[k];
        counts[digit] = 1;
      }
    });
    if (known == 0) {
      for (std::uint64_t amount : totals) total += amount;
    }
    Bits digit = 0;
    bool found = false;
    for (int b = (1 << width) - 1; b >= 0; --b) {
      if (counts[b] == 0) continue;
      if (found) above += totals[digit];
      digit = static_cast<Bits>(b);
      found = true;
      if (goal.is_met(above + totals[b], total)) break;
    }
    prefix = (prefix << width) | digit;
    known += width;
  }
  const Bits bits = key_to_bits(prefix);
  T cut;
  std::memcpy(&cut, &bits, sizeof(T));
  return cut;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
