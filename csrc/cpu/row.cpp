// Sweeps over a row: extremes; masses by bin, giving the cut; group references; sums; loss and
// gradient. The loops hold no branch and no library call for float, so they become vector code.
#ifndef GKD_CPU_CAPABILITY
#define GKD_CPU_CAPABILITY DEFAULT
#endif

#include "cpu/row.h"

#include <algorithm>
#include <limits>

#include "cpu/select.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// Largest logits of each group, for the references.
template <class T>
void find_references(const T* s, const T* u, const T* rank, std::int64_t classes, T cut,
                     std::int64_t target, T temperature, Reference<T> (&ref)[2]) {
  T high_u[2][kLanes], high_s[2][kLanes];
  for (int g = 0; g < 2; ++g) {
    std::fill(high_u[g], high_u[g] + kLanes, -kInfinity<T>);
    std::fill(high_s[g], high_s[g] + kLanes, -kInfinity<T>);
  }
  auto see = [&](std::int64_t j, int k, bool in) {
    const T u0 = in ? u[j] : -kInfinity<T>, u1 = in ? -kInfinity<T> : u[j];
    const T s0 = in ? s[j] : -kInfinity<T>, s1 = in ? -kInfinity<T> : s[j];
    high_u[0][k] = u0 > high_u[0][k] ? u0 : high_u[0][k];
    high_u[1][k] = u1 > high_u[1][k] ? u1 : high_u[1][k];
    high_s[0][k] = s0 > high_s[0][k] ? s0 : high_s[0][k];
    high_s[1][k] = s1 > high_s[1][k] ? s1 : high_s[1][k];
  };
  auto sweep = [&](std::int64_t begin, std::int64_t end) {
    std::int64_t j = begin;
    for (; j + kLanes <= end; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) see(j + k, k, rank[j + k] >= cut);
    }
    for (; j < end; ++j) see(j, 0, rank[j] >= cut);
  };
  sweep(0, target < 0 ? classes : target);
  if (target >= 0) {
    see(target, 0, true);
    sweep(target + 1, classes);
  }
  for (int g = 0; g < 2; ++g) {
    const T top_u = *std::max_element(high_u[g], high_u[g] + kLanes);
    const T top_s = *std::max_element(high_s[g], high_s[g] + kLanes);
    ref[g].teacher = top_u > -kInfinity<T> ? top_u : T(0);
    ref[g].student = top_s > -kInfinity<T> ? top_s : T(0);
  }
  // The student's logit at the group's teacher maximum, unless it would let b overflow.
  bool found[2] = {false, false};
  for (std::int64_t j = 0; j < classes && !(found[0] && found[1]); ++j) {
    const int g = (rank[j] >= cut || j == target) ? 0 : 1;
    if (found[g] || u[j] != ref[g].teacher) continue;
    found[g] = true;
    if ((ref[g].student - s[j]) / temperature <= T(40)) ref[g].student = s[j];
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

  Reference<T> ref[2];
  find_references(s, u, rank, classes, cut, target, temperature, ref);
  GroupMoments<double> moments[2];
  const bool target_joins = target >= 0 && !(rank[target] >= cut);
  for (int g = 0; g < 2; ++g) {
    moments[g].ref_teacher = ref[g].teacher;
    moments[g].ref_student = ref[g].student;
  }
  for (std::int64_t begin = 0; begin < classes; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, classes);
    T a[2][kLanes] = {}, b[2][kLanes] = {}, x[2][kLanes] = {};
    std::int32_t inside[kLanes] = {};
    auto add = [&](std::int64_t j, int k, bool in) {
      const Reference<T> r{in ? ref[0].teacher : ref[1].teacher,
                           in ? ref[0].student : ref[1].student};
      const Terms<T> t = class_terms(s[j], u[j], r, inv_t);
      a[0][k] += in ? t.a : T(0);
      b[0][k] += in ? t.b : T(0);
      x[0][k] += in ? t.x : T(0);
      a[1][k] += in ? T(0) : t.a;
      b[1][k] += in ? T(0) : t.b;
      x[1][k] += in ? T(0) : t.x;
      inside[k] += in;
    };
    std::int64_t j = begin;
    const bool has_target = target_joins && target >= begin && target < end;
    for (; !has_target && j + kLanes <= end; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) add(j + k, k, rank[j + k] >= cut);
    }
    for (; j < end; ++j) add(j, 0, rank[j] >= cut || j == target);
    std::int64_t count = 0;
    for (int k = 0; k < kLanes; ++k) {
      for (int g = 0; g < 2; ++g) {
        moments[g].a += a[g][k];
        moments[g].b += b[g][k];
        moments[g].x += x[g][k];
      }
      count += inside[k];
    }
    moments[0].count += count;
    moments[1].count += (end - begin) - count;
  }
  result.size = moments[0].count;

  GroupCoef<T> coef[2];
  result.summary = finish_row(moments, w, coef);
  double kl[2] = {0, 0};
  for (std::int64_t begin = 0; begin < classes; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, classes);
    T sum[2][kLanes] = {};
    auto emit = [&](std::int64_t j, int k, bool in) {
      GroupCoef<T> c;
      c.ref.teacher = in ? coef[0].ref.teacher : coef[1].ref.teacher;
      c.ref.student = in ? coef[0].ref.student : coef[1].ref.student;
      c.inv_a = in ? coef[0].inv_a : coef[1].inv_a;
      c.inv_b = in ? coef[0].inv_b : coef[1].inv_b;
      c.shift = in ? coef[0].shift : coef[1].shift;
      c.on_q = in ? coef[0].on_q : coef[1].on_q;
      c.on_gap = in ? coef[0].on_gap : coef[1].on_gap;
      const ClassTerms<T> t = class_kl(s[j], u[j], c, inv_t);
      sum[0][k] += in ? t.kl : T(0);
      sum[1][k] += in ? T(0) : t.kl;
      return class_grad(t, c) * gradient_scale;
    };
    std::int64_t j = begin;
    const bool has_target = target_joins && target >= begin && target < end;
    if (gradient && !has_target) {
      for (; j + kLanes <= end; j += kLanes) {
        for (int k = 0; k < kLanes; ++k) gradient[j + k] = emit(j + k, k, rank[j + k] >= cut);
      }
    } else if (!has_target) {
      for (; j + kLanes <= end; j += kLanes) {
        for (int k = 0; k < kLanes; ++k) emit(j + k, k, rank[j + k] >= cut);
      }
    }
    for (; j < end; ++j) {
      const T g = emit(j, 0, rank[j] >= cut || j == target);
      if (gradient) gradient[j] = g;
    }
    for (int k = 0; k < kLanes; ++k) {
      kl[0] += sum[0][k];
      kl[1] += sum[1][k];
    }
  }
  result.primary = kl[0];
  result.secondary = kl[1];
  result.loss = row_loss(result.summary, w, kl[0], kl[1]);
  return result;
}

}  // namespace

Kernels kernels() { return {&row<float>, &row<double>}; }

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
