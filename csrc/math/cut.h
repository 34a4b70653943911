// Which classes are in the primary group.
//
// - Selection returns one cut per row: the smallest ranking logit that is still in the group
//   (+inf: the empty group, -inf: every class). Ties at the cut stay together, so the group does
//   not depend on the order of the classes, and the loss does not depend on how the cut was found.
// - Mass is summed in fixed point: integer sums do not depend on the order of summation, so sorting
//   and selecting give the same cut on threads, devices and ranks.
// - For radix passes a logit becomes an unsigned key of the same order; -0.0 and +0.0 have the
//   same key, and a NaN of either sign ranks above +inf.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "math/hostdevice.h"

namespace gkd {

/// How the group of a row is chosen.
struct Selection {
  double threshold = 0.93;  ///< used when group_size < 0
  std::int64_t group_size = -1;
  bool by_student = false;
  bool sort = false;  ///< sort the row instead of counting it into bins
  double temperature =
      0;  ///< T_g, of the softmax whose mass `threshold` bounds; 0: that of the terms

  bool by_both = false;  ///< threshold and group_size: the shorter of the two groups

  GKD_HD double temperature_or(double terms) const { return temperature > 0 ? temperature : terms; }
};

/// The cut, where the settings alone decide it: an empty group, every class, or every class of
/// probability > 0. `classes` are those of the whole row.
template <class T>
std::optional<T> constant_cut(const Selection& selection, std::int64_t classes) {
  if (selection.group_size == 0) return std::numeric_limits<T>::infinity();
  if (selection.group_size >= classes) return -std::numeric_limits<T>::infinity();
  if (selection.group_size < 0 && selection.threshold == 1.0) {
    return std::numeric_limits<T>::lowest();
  }
  return std::nullopt;
}

/// How the cut of every row is found: the largest of `constant` and of the cuts that the selections
/// lead to, each by a threshold or by a size.
template <class T>
struct CutSearch {
  std::optional<T> constant;
  Selection selection[2];
  int num_selections = 0;
};
template <class T>
CutSearch<T> cut_search(const Selection& selection, std::int64_t classes) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  CutSearch<T> search;
  Selection alone[2] = {selection, selection};
  for (Selection& s : alone) s.by_both = false;
  if (selection.by_both) alone[1].group_size = -1;
  for (int k = 0; k < (selection.by_both ? 2 : 1); ++k) {
    if (const std::optional<T> cut = constant_cut<T>(alone[k], classes)) {
      search.constant = std::max(search.constant.value_or(-kInfinity), *cut);
    } else {
      search.selection[search.num_selections++] = alone[k];
    }
  }
  // Nothing lies above the empty group's cut, and every cut above that of all classes.
  if (search.constant == kInfinity) search.num_selections = 0;
  if (search.constant == -kInfinity && search.num_selections > 0) search.constant.reset();
  return search;
}

/// Membership in the primary group; `target` is a class index or negative when there is none.
template <class T>
GKD_HD bool in_primary(T ranking_logit, T cut, std::int64_t class_index, std::int64_t target) {
  return ranking_logit >= cut || class_index == target;
}

/// Order-preserving key of an IEEE number given by its bits (16, 32 or 64 of them, sign on top).
template <class Bits>
GKD_HD Bits ordered_key(Bits bits, Bits infinity) {
  const Bits sign = static_cast<Bits>(Bits(1) << (sizeof(Bits) * 8 - 1));
  const Bits magnitude = static_cast<Bits>(bits & static_cast<Bits>(~sign));
  if (magnitude > infinity) return static_cast<Bits>(~Bits(0));  // NaN: above +inf
  if (magnitude == 0) return sign;                               // -0.0 ties with +0.0
  return static_cast<Bits>((bits & sign) ? ~bits : (bits | sign));
}

/// The inverse of ordered_key (up to the sign of zero and the payload of NaN).
template <class Bits>
GKD_HD Bits key_to_bits(Bits key) {
  const Bits sign = static_cast<Bits>(Bits(1) << (sizeof(Bits) * 8 - 1));
  return static_cast<Bits>((key & sign) ? (key & static_cast<Bits>(~sign)) : ~key);
}

/// Fixed-point scale of one class's mass relative to the row's largest: the largest power of two
/// for which `classes` of them cannot overflow 63 bits.
GKD_HD double mass_scale(std::int64_t classes) {
  int bits = 62;
  while (bits > 0 && (std::int64_t(1) << (62 - bits)) < classes) --bits;
  return static_cast<double>(std::uint64_t(1) << bits);
}

/// A class's mass in fixed point; weight = exp((r - r_max) / T), or that times a factor which makes
/// the row's largest at most sqrt(2). The product is exact, the conversion truncates: all
/// truncations of a row together weigh less than 2^-60 C^2 of its largest class, 4e-6 at two
/// million classes.
template <class T>
GKD_HD std::uint64_t fixed_mass(T weight, T scale) {
  const T mass = weight * scale;
  // A NaN has no integer; it counts as 0 here, and the row's sums become NaN.
  return static_cast<std::uint64_t>(static_cast<long long>(mass > T(0) ? mass : T(0)));
}

/// mass / total >= threshold, with the same two roundings to double on every path.
GKD_HD bool mass_reached(std::uint64_t mass, std::uint64_t total, double threshold) {
  return static_cast<double>(mass) >= threshold * static_cast<double>(total);
}

/// When the group is complete: at a cumulative mass, or at a class count.
struct StopRule {
  bool by_mass;
  double threshold;
  std::uint64_t target_count;

  GKD_HD bool is_met(std::uint64_t weight, std::uint64_t total) const {
    return by_mass ? mass_reached(weight, total, threshold) : weight >= target_count;
  }
};

GKD_HD StopRule stop_rule(const Selection& selection) {
  return {selection.group_size < 0, selection.threshold,
          static_cast<std::uint64_t>(selection.group_size < 0 ? 0 : selection.group_size)};
}

}  // namespace gkd
