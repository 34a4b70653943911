// Sweeps over a row: extremes; masses by bin, giving the cut; group references; sums; loss and
// gradient. float goes in packs of 16, which the compiler maps to the vectors of each instruction
// set.
#ifndef GKD_CPU_CAPABILITY
#define GKD_CPU_CAPABILITY DEFAULT
#endif

#include "cpu/row.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/select.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The pack a row of T is swept with.
template <class T>
using PackOf = std::conditional_t<std::is_same_v<T, float>, FloatPack, T>;

template <class V, class T>
V splat(T x) {
  return V{} + x;
}

/// `count` < width: the rest is -inf, a class of probability 0 that adds nothing to any sum.
template <class V, class T>
V load(const T* from, std::int64_t count) {
  V v;
  if (count >= Traits<V>::kWidth) {
    std::memcpy(&v, from, sizeof(V));
    return v;
  }
  v = splat<V>(-kInfinity<T>);
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <class V>
double sum_lanes(V v) {
  ScalarOf<V> lanes[Traits<V>::kWidth];
  std::memcpy(lanes, &v, sizeof(V));
  double sum = 0;
  for (auto lane : lanes) sum += lane;
  return sum;
}

template <class V>
ScalarOf<V> max_lane(V v) {
  ScalarOf<V> lanes[Traits<V>::kWidth];
  std::memcpy(lanes, &v, sizeof(V));
  return *std::max_element(lanes, lanes + Traits<V>::kWidth);
}

/// One row under sweep: its logits, the cut and the forced target.
template <class T>
struct Row {
  using V = PackOf<T>;
  static constexpr int kWidth = Traits<V>::kWidth;
  const T *s, *u, *rank;
  std::int64_t classes, target;
  T cut;

  /// Calls visit(j, count, student, teacher, inside) on each pack of [begin, end).
  template <class Visit>
  void sweep(std::int64_t begin, std::int64_t end, Visit visit) const {
    const V at_cut = splat<V>(cut);
    for (std::int64_t j = begin; j < end; j += kWidth) {
      const std::int64_t count = std::min<std::int64_t>(kWidth, end - j);
      const V r = load<V>(rank + j, count);
      auto inside = r >= at_cut;
      if (target >= j && target < j + count) {  // once a row: the target joins wherever it stands
        T forced[kWidth];
        std::memcpy(forced, &r, sizeof(V));
        forced[target - j] = kInfinity<T>;
        V with_target;
        std::memcpy(&with_target, forced, sizeof(V));
        inside = with_target >= at_cut;
      }
      visit(j, count, load<V>(s + j, count), load<V>(u + j, count), inside);
    }
  }
};

/// The largest teacher logit of each group and the student's logit there.
template <class T>
void find_references(const Row<T>& row, T temperature, Reference<T> (&ref)[2]) {
  using V = PackOf<T>;
  const V none = splat<V>(-kInfinity<T>);
  V high_u[2] = {none, none}, high_s[2] = {none, none};
  row.sweep(0, row.classes, [&](std::int64_t, std::int64_t, V s, V u, auto in) {
    const V u0 = in ? u : none, u1 = in ? none : u, s0 = in ? s : none, s1 = in ? none : s;
    high_u[0] = u0 > high_u[0] ? u0 : high_u[0];
    high_u[1] = u1 > high_u[1] ? u1 : high_u[1];
    high_s[0] = s0 > high_s[0] ? s0 : high_s[0];
    high_s[1] = s1 > high_s[1] ? s1 : high_s[1];
  });
  for (int g = 0; g < 2; ++g) {
    const T top_u = max_lane(high_u[g]), top_s = max_lane(high_s[g]);
    ref[g].teacher = top_u > -kInfinity<T> ? top_u : T(0);
    ref[g].student = top_s > -kInfinity<T> ? top_s : T(0);
  }
  // The student's logit at the group's teacher maximum, unless it would let b overflow.
  bool found[2] = {false, false};
  for (std::int64_t j = 0; j < row.classes && !(found[0] && found[1]); ++j) {
    if (row.u[j] != ref[0].teacher && row.u[j] != ref[1].teacher) continue;
    const int g = (row.rank[j] >= row.cut || j == row.target) ? 0 : 1;
    if (found[g] || row.u[j] != ref[g].teacher) continue;
    found[g] = true;
    if ((ref[g].student - row.s[j]) / temperature <= T(40)) ref[g].student = row.s[j];
  }
}

template <class T>
void summarise(const Row<T>& row, T inv_t, const Reference<T> (&ref)[2],
               GroupMoments<double> (&moments)[2]) {
  using V = PackOf<T>;
  const V near_u = splat<V>(ref[0].teacher), near_s = splat<V>(ref[0].student);
  const V far_u = splat<V>(ref[1].teacher), far_s = splat<V>(ref[1].student);
  const V zero{}, one = splat<V>(T(1));
  for (int g = 0; g < 2; ++g) {
    moments[g].ref = {ref[g].teacher, ref[g].student};
  }
  for (std::int64_t begin = 0; begin < row.classes; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, row.classes);
    V a[2] = {}, b[2] = {}, x[2] = {}, inside{}, classes{};
    row.sweep(begin, end, [&](std::int64_t, std::int64_t, V s, V u, auto in) {
      const Reference<V> r{in ? near_u : far_u, in ? near_s : far_s};
      const Terms<V> t = class_terms(s, u, r, inv_t);
      a[0] += in ? t.a : zero;
      b[0] += in ? t.b : zero;
      x[0] += in ? t.x : zero;
      a[1] += in ? zero : t.a;
      b[1] += in ? zero : t.b;
      x[1] += in ? zero : t.x;
      inside += in ? one : zero;
      classes += one;
    });
    for (int g = 0; g < 2; ++g) {
      moments[g].a += sum_lanes(a[g]);
      moments[g].b += sum_lanes(b[g]);
      moments[g].x += sum_lanes(x[g]);
    }
    // A padding lane ranks -inf: it is inside only where the whole row is, and is taken off there.
    const std::int64_t padding = static_cast<std::int64_t>(sum_lanes(classes)) - (end - begin);
    std::int64_t count = static_cast<std::int64_t>(sum_lanes(inside));
    if (row.cut == -kInfinity<T>) count -= padding;
    moments[0].count += count;
    moments[1].count += (end - begin) - count;
  }
}

/// The last sweep: each group's KL, and the gradient where one is wanted.
template <class T>
void emit(const Row<T>& row, T inv_t, const GroupCoef<T> (&coef)[2], T gradient_scale, T* gradient,
          double (&kl)[2]) {
  using V = PackOf<T>;
  GroupCoef<V> wide[2];
  for (int g = 0; g < 2; ++g) {
    wide[g].ref = {splat<V>(coef[g].ref.teacher), splat<V>(coef[g].ref.student)};
    wide[g].inv_a = splat<V>(coef[g].inv_a);
    wide[g].inv_b = splat<V>(coef[g].inv_b);
    wide[g].shift = splat<V>(coef[g].shift);
    wide[g].on_q = splat<V>(coef[g].on_q);
    wide[g].on_gap = splat<V>(coef[g].on_gap);
  }
  const GroupCoef<V> near = wide[0], far = wide[1];
  const V zero{};
  for (std::int64_t begin = 0; begin < row.classes; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, row.classes);
    V sum[2] = {};
    row.sweep(begin, end, [&](std::int64_t j, std::int64_t count, V s, V u, auto in) {
      GroupCoef<V> c;
      c.ref.teacher = in ? near.ref.teacher : far.ref.teacher;
      c.ref.student = in ? near.ref.student : far.ref.student;
      c.inv_a = in ? near.inv_a : far.inv_a;
      c.inv_b = in ? near.inv_b : far.inv_b;
      c.shift = in ? near.shift : far.shift;
      c.on_q = in ? near.on_q : far.on_q;
      c.on_gap = in ? near.on_gap : far.on_gap;
      const ClassTerms<V> t = class_kl(s, u, c, inv_t);
      sum[0] += in ? t.kl : zero;
      sum[1] += in ? zero : t.kl;
      if (!gradient) return;
      const V g = class_grad(t, c) * gradient_scale;
      std::memcpy(gradient + j, &g, count * sizeof(T));
    });
    for (int g = 0; g < 2; ++g) kl[g] += sum_lanes(sum[g]);
  }
}

template <class T>
RowResult row(const T* s, const T* u, std::int64_t classes, std::int64_t target,
              const Selection& how, const Weights& w, T gradient_scale, T* gradient,
              Scratch* scratch) {
  RowResult result;
  const T temperature = static_cast<T>(w.temperature), inv_t = T(1) / temperature;
  const Extremes<T> es = extremes(s, classes), eu = extremes(u, classes);
  if (es.bad || eu.bad || es.high == -kInfinity<T> || eu.high == -kInfinity<T>) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    result.loss = result.primary = result.secondary = result.cut = nan;
    result.summary.p = result.summary.q = result.summary.binary = nan;
    if (gradient) std::fill(gradient, gradient + classes, static_cast<T>(nan));
    return result;
  }
  const T* rank = how.by_student ? s : u;
  const Extremes<T>& er = how.by_student ? es : eu;
  const T cut = select(rank, classes, how, inv_t, er.high, er.low, scratch);
  result.cut = cut;

  const Row<T> view{s, u, rank, classes, target, cut};
  Reference<T> ref[2];
  find_references(view, temperature, ref);
  GroupMoments<double> moments[2];
  summarise(view, inv_t, ref, moments);
  result.size = moments[0].count;
  GroupCoef<T> coef[2];
  result.summary = finish_row(moments, w, coef);
  double kl[2] = {0, 0};
  emit(view, inv_t, coef, gradient_scale, gradient, kl);
  result.primary = kl[0];
  result.secondary = kl[1];
  result.loss = row_loss(result.summary, w, kl[0], kl[1]);
  return result;
}

}  // namespace

Kernels kernels() { return {&row<float>, &row<double>}; }

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
