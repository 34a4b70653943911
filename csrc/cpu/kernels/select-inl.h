// The cut of a row, the smallest ranking logit in its group, without sorting the row.
//
// - estimate_range() guesses a small window that holds the cut. The pass that sums the row weighs
//   both sides of it exactly, in integers, and cut_in_window() finds the cut inside.
// - exact_cut() always succeeds: a radix search over ordered keys, three passes over a float row.
//   It is the fallback for rows whose window stays too large or was wrong.
// - sorted_cut() sorts. All three weigh classes by the same integers, so all give the same cut.
#pragma once

#include <functional>

#include "cpu/kernels/sums-inl.h"
#include "math/radix_select.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The first of `logits`, which descend, on top of `above`, at which the stop rule is met; false
/// where none is.
template <class T>
bool first_met(const StopRule& stop, const MassRule<T>& rule, const T* logits, std::int64_t count,
               std::uint64_t above, std::uint64_t total, T* cut) {
  std::uint64_t weights[kTile];
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t k = j % kTile;
    if (k == 0) class_weights(stop, rule, logits + j, std::min(kTile, count - j), weights);
    above += weights[k];
    if (stop.is_met(above, total)) {
      *cut = logits[j];
      return true;
    }
  }
  return false;
}

/// The same of logits in any order. Halves the candidates until few are left: linear time in total.
template <class T>
bool cut_in_window(const StopRule& stop, const MassRule<T>& rule, std::vector<T>& logits,
                   std::uint64_t above, std::uint64_t total, T* cut) {
  constexpr std::int64_t kSortLimit = 64;
  T *first = logits.data(), *last = first + logits.size();
  while (last - first > kSortLimit) {
    T* middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, std::greater<T>());
    const std::uint64_t upper = total_weight(stop, rule, first, middle - first);
    if (stop.is_met(above + upper, total)) {
      last = middle;
    } else {
      above += upper;
      first = middle;
    }
  }
  std::sort(first, last, std::greater<T>());
  return first_met(stop, rule, first, last - first, above, total, cut);
}

template <class T>
T sorted_cut(const Row<T>& row, const StopRule& stop, const MassRule<T>& rule) {
  std::vector<T> logits;
  logits.reserve(row.classes);
  read_tiles<T>(row.rank, 0, row.classes,
                [&](std::int64_t count, const T* r) { logits.insert(logits.end(), r, r + count); });
  const std::uint64_t total = total_weight(stop, rule, logits.data(), row.classes);
  std::sort(logits.begin(), logits.end(), std::greater<T>());
  T cut = logits.back();
  first_met(stop, rule, logits.data(), row.classes, 0, total, &cut);
  return cut;
}

/// One radix pass: the weights of the keys that the search holds, by bin, highest first.
template <class T>
struct KeyHistogram {
  const RadixSearch<T>& search;
  const Keys<T>& keys;
  long long* bins;
  const int shift = search.bin_bits();

  /// Adds a tile's logits; returns their weight.
  std::uint64_t add(const StopRule& stop, const MassRule<T>& rule, const T* logits,
                    std::int64_t count) const {
    std::uint64_t weights[kTile], total = 0;
    class_weights(stop, rule, logits, count, weights);
    KeyOf<T> key[kTile];
    for (std::int64_t k = 0; k < count; ++k) key[k] = keys.of(logits[k]);  // vectorised
    for (std::int64_t k = 0; k < count; ++k) {
      total += weights[k];
      if (search.holds(key[k])) {
        bins[search.bin(key[k], shift)] += static_cast<long long>(weights[k]);
      }
    }
    return total;
  }
};

/// Copies those of a tile's logits that the search may hold to `out`; returns their number.
template <class T>
std::int64_t candidates_of(const RadixSearch<T>& search, const Keys<T>& keys, const T* logits,
                           std::int64_t count, T* out) {
  using V = VecOf<T>;
  // The lowest key may be that of a NaN, which bounds nothing: only -inf lies beyond it. No library
  // function: see README.md.
  const T lowest = keys.logit(search.low);
  // NOLINTNEXTLINE(misc-redundant-expression): false for a NaN
  const V first = splat<V>(lowest == lowest ? lowest : -kInfinity<T>);
  const V last = splat<V>(keys.logit(search.high));
  std::int64_t n = 0;
  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
    const V v = load<V>(logits + k);
    unsigned bits = movemask((v >= first) & (v <= last));
    for (; bits != 0; bits &= bits - 1) {
      const std::int64_t j = k + __builtin_ctz(bits);
      if (j < count) out[n++] = logits[j];
    }
  }
  return n;
}

/// The search inside the first bin at which the stop rule is met; the last one where it is not met.
template <class T>
RadixSearch<T> refine(const RadixSearch<T>& search, const StopRule& stop, const long long* bins) {
  const int shift = search.bin_bits(), last = search.bin(search.low, shift);
  unsigned long long over = 0;
  int bin = 0;
  for (; bin < last; ++bin) {
    const auto weight = static_cast<unsigned long long>(bins[bin]);
    if (stop.is_met(search.above + over + weight, search.total)) break;
    over += weight;
  }
  return search.refined(bin, shift, over);
}

/// The first pass weighs every class, later ones those that the search holds.
template <class T>
T exact_cut(const Row<T>& row, const StopRule& stop, const MassRule<T>& rule, Scratch* scratch) {
  const Keys<T> keys(row.rank.dtype);
  RadixSearch<T> search = first_search(keys, rule.high);
  for (bool first = true; !search.found(); first = false) {
    scratch->histogram.assign(kBins, 0);
    const KeyHistogram<T> histogram{search, keys, scratch->histogram.data()};
    std::uint64_t weight = 0;
    read_tiles<T>(row.rank, 0, row.classes, [&](std::int64_t count, const T* r) {
      alignas(64) T candidates[kTile];
      if (!first) {
        count = candidates_of(search, keys, r, count, candidates);
        r = candidates;
      }
      weight += histogram.add(stop, rule, r, count);
    });
    if (first) search.total = weight;
    search = refine(search, stop, scratch->histogram.data());
  }
  return keys.logit(search.high);
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
