// What ranks tell one another about a row whose classes are split over them: plain numbers, in the
// types that collectives reduce.
//
//   extremes  int64 [2]             maximum over ranks
//   counts    int32 [kBins]         sum
//   amounts   int64 [kMsgHistogram]  sum; once per spread (math/radix_select.h)
//   moments   double [kMsgMoments] gathered, and merged in rank order
//   kl        double [2]            gathered, and added in rank order
//
// Everything that decides the group is a maximum or an integer sum, so every rank finds the same
// cut, and it is the cut of the whole row on one device.
#pragma once

#include "math/moments.h"
#include "math/radix_select.h"

namespace gkd {

constexpr int kMsgExtremes = 2;

/// A spread's bins, the whole row's amount, and the amount above the window.
constexpr int kMsgHistogram = kBins + 2, kMsgTotal = kBins, kMsgAbove = kBins + 1;

/// A rank's own search: high, low, above, total. It never travels.
constexpr int kSearchFields = 4;

/// Two groups of six numbers, and whether the rank's part holds NaN or +inf.
constexpr int kMsgMoments = 13, kMsgInvalid = 12;

/// A key as a number whose signed order is the key's.
template <class T>
GKD_HD long long to_message(KeyOf<T> key) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<long long>(static_cast<unsigned long long>(key) ^ kFlip);
}
template <class T>
GKD_HD KeyOf<T> from_message(long long wire) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<KeyOf<T>>(static_cast<unsigned long long>(wire) ^ kFlip);
}

/// The largest ranking logit and the smallest finite one; the latter's key inverted, so that both
/// are maxima.
template <class T>
GKD_HD void extremes_to_message(T high, T low, long long* wire) {
  const Keys<T> keys;
  wire[0] = to_message<T>(keys.of(high));
  wire[1] = to_message<T>(static_cast<KeyOf<T>>(~keys.of(low)));
}
template <class T>
GKD_HD T high_from_message(const long long* wire) {
  return Keys<T>().logit(from_message<T>(wire[0]));
}
template <class T>
GKD_HD T low_from_message(const long long* wire) {
  return Keys<T>().logit(static_cast<KeyOf<T>>(~from_message<T>(wire[1])));
}

template <class T>
GKD_HD void search_to_message(const RadixSearch<T>& search, long long* wire) {
  wire[0] = static_cast<long long>(search.high);
  wire[1] = static_cast<long long>(search.low);
  wire[2] = static_cast<long long>(search.above);
  wire[3] = static_cast<long long>(search.total);
}
template <class T>
GKD_HD RadixSearch<T> search_from_message(const long long* wire) {
  return {static_cast<KeyOf<T>>(wire[0]), static_cast<KeyOf<T>>(wire[1]),
          static_cast<unsigned long long>(wire[2]), static_cast<unsigned long long>(wire[3])};
}

/// The search before the first spread: every key up to the row's largest. What is above the window
/// and the total come with the first spread's amounts.
template <class T>
GKD_HD RadixSearch<T> first_search(const Keys<T>& keys, T high) {
  return {keys.of(high), 0, 0, 0};
}

GKD_HD void moments_to_message(const GroupMoments<double>& m, int group, double* wire) {
  double* to = wire + 6 * group;
  // A sum of nothing but 0 has seen no finite logit, and its reference must not pull others'.
  to[0] = m.sum_teacher > 0 ? m.shift.teacher : -std::numeric_limits<double>::infinity();
  to[1] = m.sum_student > 0 ? m.shift.student : -std::numeric_limits<double>::infinity();
  to[2] = m.sum_teacher;
  to[3] = m.sum_student;
  to[4] = m.sum_diff;
  to[5] = static_cast<double>(m.count);
}
GKD_HD GroupMoments<double> moments_from_message(const double* wire, int group) {
  const double* from = wire + 6 * group;
  GroupMoments<double> m;
  m.shift = {from[0], from[1]};
  m.sum_teacher = from[2];
  m.sum_student = from[3];
  m.sum_diff = from[4];
  m.count = static_cast<long long>(from[5]);
  return m;
}

}  // namespace gkd
