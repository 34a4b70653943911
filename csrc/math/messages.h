// What ranks send each other about a row whose classes are sharded over them: plain numbers, in the
// types that collectives reduce.
//
//   extremes   int64 [kMsgExtremes]   maximum over ranks
//   counts     int32 [kBins]          sum
//   histogram  int64 [kMsgHistogram]  sum; once per radix pass (math/radix_select.h)
//   moments    double [kMsgMoments]   gathered, and merged in rank order; with cross-entropy
//              [kMsgWithHead]
//   kl         double [2]             gathered, and added in rank order
//
// The group depends on maxima and integer sums only, so every rank finds the same cut, which is
// also the cut of the unsharded row.
#pragma once

#include "math/cross_entropy.h"
#include "math/loss.h"
#include "math/moments.h"
#include "math/radix_select.h"

namespace gkd {

constexpr int kMsgExtremes = 2;

/// A pass's bins, the whole row's weight, and the weight above the bins that may hold the cut.
constexpr int kMsgHistogram = kBins + 2, kMsgTotal = kBins, kMsgAbove = kBins + 1;

/// The search of a rank: high, low, above, total. It is not sent.
constexpr int kSearchFields = 4;

/// Two groups of six numbers, and whether the shard has NaN or +inf.
constexpr int kMsgMoments = 13, kMsgInvalid = 12;

/// And the OtherSum, and the target's logit with its margin from the rank that has it.
constexpr int kMsgWithHead = 16, kMsgOthers = 13, kMsgTarget = 15;

/// A key as a number whose signed order is the key's.
template <class T>
GKD_HD long long to_message(KeyOf<T> key) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<long long>(static_cast<unsigned long long>(key) ^ kFlip);
}
template <class T>
GKD_HD KeyOf<T> from_message(long long message) {
  constexpr unsigned long long kFlip = sizeof(T) == 8 ? 1ull << 63 : 0;
  return static_cast<KeyOf<T>>(static_cast<unsigned long long>(message) ^ kFlip);
}

/// The largest ranking logit and the smallest finite one. The latter's key is inverted, so that one
/// maximum over ranks serves both.
template <class T>
GKD_HD void extremes_to_message(T high, T low, long long* message) {
  const Keys<T> keys;
  message[0] = to_message<T>(keys.of(high));
  message[1] = to_message<T>(static_cast<KeyOf<T>>(~keys.of(low)));
}
template <class T>
GKD_HD T high_from_message(const long long* message) {
  return Keys<T>().logit(from_message<T>(message[0]));
}
template <class T>
GKD_HD T low_from_message(const long long* message) {
  return Keys<T>().logit(static_cast<KeyOf<T>>(~from_message<T>(message[1])));
}

template <class T>
GKD_HD void search_to_message(const RadixSearch<T>& search, long long* message) {
  message[0] = static_cast<long long>(search.high);
  message[1] = static_cast<long long>(search.low);
  message[2] = static_cast<long long>(search.above);
  message[3] = static_cast<long long>(search.total);
}
template <class T>
GKD_HD RadixSearch<T> search_from_message(const long long* message) {
  return {static_cast<KeyOf<T>>(message[0]), static_cast<KeyOf<T>>(message[1]),
          static_cast<unsigned long long>(message[2]), static_cast<unsigned long long>(message[3])};
}

GKD_HD void moments_to_message(const GroupMoments<double>& m, int group, double* message) {
  double* fields = message + 6 * group;
  // A sum of 0 has seen no finite logit: its shift must not take part in the common one.
  fields[0] = m.sum_teacher > 0 ? m.shift.teacher : -std::numeric_limits<double>::infinity();
  fields[1] = m.sum_student > 0 ? m.shift.student : -std::numeric_limits<double>::infinity();
  fields[2] = m.sum_teacher;
  fields[3] = m.sum_student;
  fields[4] = m.sum_diff;
  fields[5] = static_cast<double>(m.count);
}
/// The cross-entropy of a row whose ranks sent `messages`, `stride` numbers apart, and the OtherSum
/// of the whole row.
GKD_HD CrossEntropy cross_entropy_from_messages(const double* messages, long long ranks,
                                                long long stride, double scale, OtherSum* others) {
  double target = -std::numeric_limits<double>::infinity();
  *others = {};
  for (long long rank = 0; rank < ranks; ++rank) {
    const double* message = messages + rank * stride;
    others->merge({message[kMsgOthers], message[kMsgOthers + 1]}, scale);
    target = message[kMsgTarget] > target ? message[kMsgTarget] : target;
  }
  return cross_entropy(*others, target, scale);
}

GKD_HD GroupMoments<double> moments_from_message(const double* message, int group) {
  const double* fields = message + 6 * group;
  GroupMoments<double> m;
  m.shift = {fields[0], fields[1]};
  m.sum_teacher = fields[2];
  m.sum_student = fields[3];
  m.sum_diff = fields[4];
  m.count = static_cast<long long>(fields[5]);
  return m;
}

/// A row's moments over all ranks.
struct MergedRow {
  GroupMoments<double> group[2];
  CrossEntropy cross_entropy;
  OtherSum others;
  bool invalid = false;
};

/// Of `ranks` messages, `stride` numbers apart, in their order.
GKD_HD MergedRow merge_messages(const double* messages, long long ranks, long long stride,
                                const Weights& weights) {
  MergedRow row;
  const double inv_temperature = 1 / weights.exponent_temperature();
  for (long long rank = 0; rank < ranks; ++rank) {
    const double* message = messages + rank * stride;
    row.invalid |= message[kMsgInvalid] != 0;
    for (int g = 0; g < 2; ++g) {
      row.group[g].merge(moments_from_message(message, g), inv_temperature);
    }
  }
  if (weights.cross_entropy != 0) {
    row.cross_entropy =
        cross_entropy_from_messages(messages, ranks, stride, weights.scale, &row.others);
  }
  const auto& [primary, rest] = row.group;
  row.invalid |= (primary.sum_teacher == 0 && rest.sum_teacher == 0) ||
                 (primary.sum_student == 0 && rest.sum_student == 0);
  return row;
}

}  // namespace gkd
