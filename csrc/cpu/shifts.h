// The references of a row's groups' exponentials.
//
// References are guessed first: the teacher's largest logit serves both groups unless one lies so
// far under it that its terms lose digits, which sums_are_accurate() sees in the sums. Then they
// are sought. A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <cmath>

#include "cpu/sweeps.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The first class of [begin, end) whose teacher logit lies in [low, high]; -1: none.
template <class T>
std::int64_t find_teacher(const Row<T>& row, std::int64_t begin, std::int64_t end, T low, T high) {
  using V = VecOf<T>;
  alignas(64) T buffer[kBlock];
  for (std::int64_t j = begin; j < end; j += kBlock) {
    const std::int64_t count = std::min(kBlock, end - j);
    const T* u = read(row.u, j, count, buffer);
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V v = load<V>(u + k);
      const unsigned bits = movemask((v >= low) & (v <= high));
      if (bits != 0) return std::min(j + k + __builtin_ctz(bits), end - 1);
    }
  }
  return -1;
}

/// Both groups relative to the teacher's maximum: the primary by the class that has it, the rest by
/// the student-teacher gap of one class of its own, so that its terms keep their digits too.
template <class T>
void guess_shifts(const Row<T>& row, const LogitRange<T>& window, bool by_student, T temperature,
                  const std::vector<Segment>& segments, Shift<T> (&shift)[2]) {
  std::int64_t best = 0;
  for (std::int64_t k = 1; k < row.segments(); ++k) {
    if (segments[k].teacher_high > segments[best].teacher_high) best = k;
  }
  const T high = static_cast<T>(segments[best].teacher_high);
  const std::int64_t first = best * kSegment, last = std::min(row.classes, first + kSegment);
  // A part of a row may be all NaN, which no comparison finds: then any class serves.
  const std::int64_t top = std::max(find_teacher(row, first, last, high, high), first);
  const T student = read_one<T>(row.s, top);
  shift[0] = shift[1] = {high, finite_or_zero(student)};

  // A few thousand classes are looked at; ranked by the student, the first is as good as any.
  const std::int64_t near = std::min(row.classes, kSegment);
  std::int64_t other = by_student ? 0 : -1;
  if (!by_student && window.low < kInfinity<T>) {
    const T below = std::nextafter(window.low, -kInfinity<T>);
    other = find_teacher(row, 0, near, below - 4 * temperature, below);
  }
  if (other < 0) return;
  const T u = read_one<T>(row.u, other), s = read_one<T>(row.s, other);
  const T shifted = high - (u - s);
  if (std::isfinite(shifted)) shift[1].student = shifted;
}

/// Groups up to this size get references of their own where they carry a KL.
inline constexpr long long kFewClasses = 64;

/// Whether no sum can have lost digits against the reference it was taken with: an exponent of x is
/// rounded to x 2^-24, so sums far from 1 are off by more than the promised 2e-6. Where the rest
/// carries no KL only its mass counts, which may be small: 1e-12 is 28 nats, 1.6e-6.
inline bool sums_are_accurate(const Sums& sums, bool rest_has_kl) {
  for (int g = 0; g < 2; ++g) {
    // Where everything is in the group, a class that ranks NaN shows in the sums of the rest only.
    if (sums.count[g] == 0 && sums.sum_teacher[g] == 0 && sums.sum_student[g] == 0) continue;
    const double least = g == 0 || rest_has_kl ? 1e-4 : 1e-12;
    const double most = 1e4 + static_cast<double>(sums.count[g]);
    for (double sum : {sums.sum_teacher[g], sums.sum_student[g]}) {
      if (!(sum >= least && sum <= most)) return false;
    }
  }
  return true;
}

/// NaN or +inf in either row or, where `whole`, nothing but -inf: a part of a row may be so.
template <class T>
bool is_bad(const Row<T>& row, bool whole) {
  for (const LogitsRow* source : {&row.s, &row.u}) {
    bool any = false, bad = false;
    each_of<T>(*source, 0, row.classes, [&](std::int64_t, std::int64_t count, const T* v) {
      for (std::int64_t k = 0; k < count; ++k) {
        bad |= !(v[k] < kInfinity<T>);
        any |= v[k] > -kInfinity<T>;
      }
    });
    if (bad || (whole && !any)) return true;
  }
  return false;
}

/// The largest teacher logit of each group and the student's logit there, unless that lies so far
/// under the group's largest that b would overflow.
template <class T>
void exact_shifts(const Row<T>& row, T cut, T temperature, Shift<T> (&shift)[2]) {
  T high_s[2] = {-kInfinity<T>, -kInfinity<T>}, at_high[2] = {T(0), T(0)};
  shift[0] = shift[1] = {-kInfinity<T>, -kInfinity<T>};
  typename Row<T>::Buffers buffers;
  for (std::int64_t j = 0; j < row.classes; j += kBlock) {
    const std::int64_t count = std::min(kBlock, row.classes - j);
    row.visit_block(j, count, &buffers, [&](Block<T> s, Block<T> u, Block<T> r) {
      for (std::int64_t k = 0; k < count; ++k) {
        const int g = r.at[k] >= cut ? 0 : 1;
        high_s[g] = std::max(high_s[g], s.at[k]);
        if (!(u.at[k] > shift[g].teacher)) continue;
        shift[g].teacher = u.at[k];
        at_high[g] = s.at[k];
      }
    });
  }
  for (int g = 0; g < 2; ++g) {
    const bool near = (high_s[g] - at_high[g]) / temperature <= T(40);
    shift[g].student = finite_or_zero(near ? at_high[g] : high_s[g]);
    shift[g].teacher = finite_or_zero(shift[g].teacher);
  }
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
