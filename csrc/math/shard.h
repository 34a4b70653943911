// What ranks tell one another about a row whose classes are split over them: plain numbers, in the
// types that collectives reduce.
//
//   extremes  int64 [2]             maximum over ranks
//   counts    int32 [kBins]         sum
//   amounts   int64 [kWireAmounts]  sum; once per spread (math/search.h)
//   moments   double [kWireMoments] gathered, and merged in rank order
//   kl        double [2]            gathered, and added in rank order
//
// Everything that decides the group is a maximum or an integer sum, so every rank finds the same
// cut, and it is the cut of the whole row on one device.
#pragma once

#include "math/moments.h"
#include "math/search.h"

namespace gkd {

constexpr int kWireExtremes = 2;

/// A spread's bins, the whole row's amount, and the amount above the window.
constexpr int kWireAmounts = kBins + 2, kWireTotal = kBins, kWireAbove = kBins + 1;

/// A rank's own search: high, low, above, total. It never travels.
constexpr int kSearchFields = 4;

/// Two groups of six numbers, and whether the rank's part holds NaN or +inf.
constexpr int kWireMoments = 13, kWireBad = 12;

/// A key as a number whose signed order is the key's.
template <class T>
GKD_HD long long to_wire(KeyOf<T> key) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<long long>(static_cast<unsigned long long>(key) ^ kFlip);
}
template <class T>
GKD_HD KeyOf<T> from_wire(long long wire) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<KeyOf<T>>(static_cast<unsigned long long>(wire) ^ kFlip);
}

/// The largest ranking logit and the smallest finite one; the latter's key inverted, so that both
/// are maxima.
template <class T>
GKD_HD void extremes_to_wire(T high, T low, long long* wire) {
  const Keys<T> keys;
  wire[0] = to_wire<T>(keys.of(high));
  wire[1] = to_wire<T>(static_cast<KeyOf<T>>(~keys.of(low)));
}
template <class T>
GKD_HD T high_from_wire(const long long* wire) {
  return Keys<T>().logit(from_wire<T>(wire[0]));
}
template <class T>
GKD_HD T low_from_wire(const long long* wire) {
  return Keys<T>().logit(static_cast<KeyOf<T>>(~from_wire<T>(wire[1])));
}

template <class T>
GKD_HD void search_to_wire(const Search<T>& search, long long* wire) {
  wire[0] = static_cast<long long>(search.high);
  wire[1] = static_cast<long long>(search.low);
  wire[2] = static_cast<long long>(search.above);
  wire[3] = static_cast<long long>(search.total);
}
template <class T>
GKD_HD Search<T> search_from_wire(const long long* wire) {
  return {static_cast<KeyOf<T>>(wire[0]), static_cast<KeyOf<T>>(wire[1]),
          static_cast<unsigned long long>(wire[2]), static_cast<unsigned long long>(wire[3])};
}

/// The search before the first spread: every key up to the row's largest. What is above the window
/// and the total come with the first spread's amounts.
template <class T>
GKD_HD Search<T> first_search(const Keys<T>& keys, T high) {
  return {keys.of(high), 0, 0, 0};
}

GKD_HD void moments_to_wire(const GroupMoments<double>& m, int group, double* wire) {
  double* to = wire + 6 * group;
  // A sum of nothing but 0 has seen no finite logit, and its reference must not pull others'.
  to[0] = m.a > 0 ? m.ref.teacher : -std::numeric_limits<double>::infinity();
  to[1] = m.b > 0 ? m.ref.student : -std::numeric_limits<double>::infinity();
  to[2] = m.a;
  to[3] = m.b;
  to[4] = m.x;
  to[5] = static_cast<double>(m.count);
}
GKD_HD GroupMoments<double> moments_from_wire(const double* wire, int group) {
  const double* from = wire + 6 * group;
  GroupMoments<double> m;
  m.ref = {from[0], from[1]};
  m.a = from[2];
  m.b = from[3];
  m.x = from[4];
  m.count = static_cast<long long>(from[5]);
  return m;
}

}  // namespace gkd
