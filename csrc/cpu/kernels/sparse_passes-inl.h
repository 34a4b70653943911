// The passes over a row of which the teacher is known in its group alone (sparse.cpp).
//
// Two passes over the student, the second of which finds the row in the cache: sums, and gradient.
// In a copy of each tile the group's classes are -inf, so that the sum of the rest is one over its
// own classes, never a difference. The group's logits are gathered, in blocks of a tile's size.
#pragma once

#include <algorithm>

#include "cpu/kernels/rest_sums-inl.h"
#include "cpu/kernels/sums-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
struct SparsePasses {
  using V = VecOf<T>;
  const SparseTask& sparse;
  const RowTask& task = sparse.row;
  const Executor& executor;
  Scratch* scratch;
  const double inv_temperature = 1 / task.weights.exponent_temperature();
  const double scale = task.weights.scale;
  const T inv_t = T(1) / static_cast<T>(task.weights.exponent_temperature());
  const std::int64_t segments = (task.classes + kSegment - 1) / kSegment;
  /// How cross-entropy's exponentials of the rest are computed.
  const int squarings = squarings_of(task.weights.temperature);
  const Others others_from = task.weights.cross_entropy == 0 ? Others::kNone
                             : squarings >= 0                ? Others::kPower
                                                             : Others::kExp;
  Shift<T> shift{};  ///< the group's

  SparsePasses(const SparseTask& sparse, const Executor& executor, Scratch* scratch)
      : sparse(sparse), executor(executor), scratch(scratch) {
    scratch->sparse.resize(std::max(scratch->sparse.size(), static_cast<std::size_t>(segments)));
  }

  template <class Body>
  void for_each_segment(Body body) {
    executor(segments, [&](std::int64_t k) {
      body(scratch->sparse[k], k * kSegment, std::min(task.classes, (k + 1) * kSegment));
    });
  }

  /// Where the group's classes from `class_index` on begin.
  std::int64_t place_of(std::int64_t class_index) const {
    const std::int32_t* end = sparse.indices + sparse.size;
    return std::lower_bound(sparse.indices, end, class_index) - sparse.indices;
  }

  SparseSegment placed(std::int64_t begin, std::int64_t end) const {
    SparseSegment segment;
    segment.first = place_of(begin);
    segment.last = place_of(end);
    return segment;
  }
  /// For a pass that is not preceded by sum_rest_and_scan_group().
  void place_segments() {
    for_each_segment([&](SparseSegment& segment, std::int64_t begin, std::int64_t end) {
      segment = placed(begin, end);
    });
  }

  /// Calls visit(begin, count, x) on each tile of a segment, whose group's classes are -inf in x.
  template <class Visit>
  void for_each_rest_tile(const SparseSegment& segment, std::int64_t begin, std::int64_t end,
                          Visit visit) const {
    alignas(64) T buffer[kTile];
    const std::int32_t* next = sparse.indices + segment.first;
    const std::int32_t* const last = sparse.indices + segment.last;
    for (std::int64_t j = begin, count; j < end; j += count) {
      count = tile_size<T>(j, end);
      const T* x = read_tile(task.student, j, count, buffer);
      if (next != last && *next < j + count) {
        if (x != buffer) std::copy(x, x + count, buffer);  // such a tile needs no padding
        for (; next != last && *next < j + count; ++next) buffer[*next - j] = -kInfinity<T>;
        x = buffer;
      }
      visit(j, count, x);
    }
  }

  /// The student's logits of some classes.
  void gather(const std::int32_t* indices, std::int64_t count, T* s) const {
    const LogitsRow& row = task.student;
    if (row.stride == 1 && row.dtype == kDtype<T>) {  // without a switch for each
      const T* data = static_cast<const T*>(row.data);
      for (std::int64_t k = 0; k < count; ++k) s[k] = data[indices[k]];
    } else {
      for (std::int64_t k = 0; k < count; ++k) s[k] = read_stored<T>(row, indices[k]);
    }
  }

  /// Calls visit(first, count, s, u) on blocks of the group's classes of a segment: the student's
  /// logits, and the teacher's divided by the scale, which they have already; padded with -inf.
  template <class Visit>
  void for_each_block(const SparseSegment& segment, Visit visit) const {
    alignas(64) T s[kTile], u[kTile];
    for (std::int64_t i = segment.first; i < segment.last; i += kTile) {
      const std::int64_t count = std::min(kTile, segment.last - i);
      gather(sparse.indices + i, count, s);
      std::fill(s + count, s + padded<T>(count), -kInfinity<T>);
      convert_tile(task.teacher, i, count, u);
      if (scale != 1) {
        for (std::int64_t k = 0; k < count; ++k) u[k] = static_cast<T>(u[k] / scale);
      }
      visit(i, count, s, u);
    }
  }

  /// A block's student logits without the target's, which becomes -inf.
  void leave_out_target(std::int64_t first, std::int64_t count, T* s) const {
    const std::int32_t *begin = sparse.indices + first, *end = begin + count;
    const std::int32_t* found = std::lower_bound(begin, end, task.target);
    if (found != end && *found == task.target) s[found - begin] = -kInfinity<T>;
  }

  template <Others kOthers>
  void sum_rest_and_scan_group() {
    for_each_segment([&](SparseSegment& segment, std::int64_t begin, std::int64_t end) {
      segment = placed(begin, end);
      RestAccumulator<T> rest{{-kInfinity<T>, inv_t, static_cast<T>(scale), squarings}};
      for_each_rest_tile(segment, begin, end, [&](std::int64_t, std::int64_t count, const T* x) {
        rest.template add<kOthers>(x, count);
      });
      segment.rest = {rest.terms.high, rest.sum.sum()};
      segment.others = {rest.terms.high, rest.sum_others.sum()};
      segment.is_valid = !rest.has_nan && rest.terms.high < kInfinity<T>;
      for_each_block(segment, [&](std::int64_t, std::int64_t count, const T* s, const T* u) {
        T high = -kInfinity<T>, teacher_high = high;
        bool is_valid = true;
        for (std::int64_t k = 0; k < count; ++k) {
          is_valid &= s[k] < kInfinity<T>;
          is_valid &= u[k] < kInfinity<T>;
          high = std::max(high, s[k]);
          teacher_high = std::max(teacher_high, u[k]);
        }
        segment.is_valid &= is_valid;
        segment.student_high = std::max<double>(segment.student_high, high);
        if (!(teacher_high > segment.teacher_high)) return;
        segment.teacher_high = teacher_high;
        segment.student_at_top = s[std::find(u, u + count, teacher_high) - u];
      });
    });
  }

  /// The group's moments, and its part of cross-entropy's sum.
  void sum_group(GroupMoments<double>* group, OtherSum* others) {
    for_each_segment([&](SparseSegment& segment, std::int64_t, std::int64_t) {
      DoubleAccumulator<V> sum_teacher, sum_student, sum_diff;
      OthersAccumulator<T> entropy{static_cast<T>(scale)};
      const Shift<V> shifts{splat<V>(shift.teacher), splat<V>(shift.student)};
      for_each_block(segment, [&](std::int64_t i, std::int64_t count, T* s, const T* u) {
        V a{}, b{}, x{};
        for (std::int64_t k = 0; k < count; k += kWidth<T>) {
          const Terms<V> t = class_terms(load<V>(s + k), load<V>(u + k), shifts, inv_t);
          a += t.exp_teacher;
          b += t.exp_student;
          x += t.diff;
        }
        sum_teacher.add(a);
        sum_student.add(b);
        sum_diff.add(x);
        if (others_from == Others::kNone) return;
        leave_out_target(i, count, s);
        entropy.add(Tile<T>{s}, count);
      });
      segment.moments.sum_teacher = sum_teacher.sum();
      segment.moments.sum_student = sum_student.sum();
      segment.moments.sum_diff = sum_diff.sum();
      segment.others.merge(entropy.result(), scale);
    });
    group->shift = {shift.teacher, shift.student};
    group->count = sparse.size;
    for (std::int64_t k = 0; k < segments; ++k) {
      const SparseSegment& segment = scratch->sparse[k];
      group->sum_teacher += segment.moments.sum_teacher;
      group->sum_student += segment.moments.sum_student;
      group->sum_diff += segment.moments.sum_diff;
      others->merge(segment.others, scale);
    }
  }

  /// The gradient as if every class were in the rest: what the group's classes get here is no
  /// number that means anything, and write_group() writes over it.
  /// `student_high`: SparseRow::write()'s rest_high.
  template <Others kOthers>
  void write_rest(const GroupCoef<T>& coef, double student_high,
                  const CrossEntropyCoef<double>& others) {
    const T high = static_cast<T>(finite_or_zero(student_high));
    const double gap = (student_high - others.high) * scale;  // -inf where nothing is finite
    const T factor = coef.coef_q * coef.inv_sum_student * static_cast<T>(task.gradient_scale);
    const T other = static_cast<T>(others.factor == 0 ? 0 : others.factor * std::exp(gap));
    for_each_segment([&](const SparseSegment&, std::int64_t begin, std::int64_t end) {
      const RestTerms<T> terms{high, inv_t, static_cast<T>(scale), squarings};
      const V factors = splat<V>(factor), other_factors = splat<V>(other);
      alignas(64) T in[kTile], buffer[kTile];
      for (std::int64_t j = begin, count; j < end; j += count) {
        count = tile_size<T>(j, end);
        const T* x = read_tile(task.student, j, count, in);
        T* out = writable_tile(task.gradient, j, count, buffer);
        for (std::int64_t k = 0; k < count; k += kWidth<T>) {
          const V v = load<V>(x + k), b = terms.student(v);
          V value = b * factors;
          if constexpr (kOthers != Others::kNone) {
            value += terms.template other<kOthers>(v, b) * other_factors;
          }
          store(value, out + k);
        }
        write_tile(task.gradient, j, count, out);
      }
    });
  }

  /// The group's KL, and its classes' gradient, over what write_rest() left there.
  double write_group(const GroupCoef<T>& coef, const CrossEntropyCoef<double>& others) {
    const auto splat_field = [](T x) { return splat<V>(x); };
    const GroupCoef<V> c = map_fields<V>(splat_field, coef);
    const OtherTerms<T> other_terms{static_cast<T>(others.high), static_cast<T>(scale)};
    const T factor = static_cast<T>(others.factor), target = static_cast<T>(others.target);
    const T gradient_scale = static_cast<T>(task.gradient_scale);
    for_each_segment([&](SparseSegment& segment, std::int64_t, std::int64_t) {
      DoubleAccumulator<V> kl;
      for_each_block(segment, [&](std::int64_t i, std::int64_t count, T* s, const T* u) {
        alignas(64) T values[kTile];
        V sum{};
        for (std::int64_t k = 0; k < count; k += kWidth<T>) {
          const ClassTerms<V> t = class_kl(load<V>(s + k), load<V>(u + k), c, inv_t);
          sum += t.kl;
          store(V(class_grad(t, c) * gradient_scale), values + k);
        }
        kl.add(sum);
        if (!task.gradient.data) return;
        if (others_from != Others::kNone) {
          leave_out_target(i, count, s);
          for (std::int64_t k = 0; k < count; k += kWidth<T>) {
            const V other = other_terms.of(load<V>(s + k)) * factor;
            store(V(load<V>(values + k) + other), values + k);
          }
          const std::int32_t* begin = sparse.indices + i;
          const std::int32_t* found = std::lower_bound(begin, begin + count, task.target);
          if (found != begin + count && *found == task.target) values[found - begin] += target;
        }
        scatter(i, count, values);
      });
      segment.kl = kl.sum();
    });
    double total = 0;
    for (std::int64_t k = 0; k < segments; ++k) total += scratch->sparse[k].kl;
    return total;
  }

  /// One block of the gradient, each class to its place.
  void scatter(std::int64_t first, std::int64_t count, const T* values) const {
    alignas(64) double stored[kTile];  // room for any dtype
    write_tile(GradientRow{stored, task.gradient.dtype}, 0, count, values);
    const auto copy = [&](auto zero) {
      using Element = decltype(zero);
      const Element* from = reinterpret_cast<const Element*>(stored);
      Element* to = static_cast<Element*>(task.gradient.data);
      for (std::int64_t k = 0; k < count; ++k) to[sparse.indices[first + k]] = from[k];
    };
    switch (element_size(task.gradient.dtype)) {
      case 2:
        return copy(std::uint16_t());
      case 4:
        return copy(std::uint32_t());
      default:
        return copy(std::uint64_t());
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
