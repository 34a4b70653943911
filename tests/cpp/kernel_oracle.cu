// The formulas, in long double, from the group that the kernels report.
#include "kernel_case.h"

namespace gkd::cuda::test {
namespace {

/// A row of one input as the distillation sees it.
std::vector<double> row_of(const Case& c, const std::vector<double>& logits, std::int64_t row) {
  const auto first = logits.begin() + row * c.p.classes;
  std::vector<double> found(first, first + c.p.classes);
  if (c.p.head.distill_margin) found[static_cast<std::size_t>(c.target[row])] -= c.p.head.margin;
  return found;
}

/// Cross-entropy of a row; its gradient goes to `probabilities`, less 1 at the target.
long double cross_entropy_of(const Case& c, std::int64_t row,
                             std::vector<long double>* probabilities) {
  const auto target = static_cast<std::size_t>(c.target[row]);
  const double* s = c.student.data() + row * c.p.classes;
  std::vector<long double>& x = *probabilities;
  for (std::int64_t j = 0; j < c.p.classes; ++j) x.push_back(s[j]);
  x[target] -= c.p.head.margin;
  for (long double& logit : x) logit *= c.p.weights.scale;
  const long double high = *std::max_element(x.begin(), x.end()), own = x[target];
  long double others = 0;  // without the target, so that a sure row keeps its digits
  for (std::size_t j = 0; j < x.size(); ++j) {
    x[j] = std::exp(x[j] - high);
    if (j != target) others += x[j];
  }
  const long double sum = others + x[target];
  for (long double& probability : x) probability /= sum;
  x[target] = -others / sum;
  return high == own ? std::log1p(others) : std::log(sum) + high - own;
}

}  // namespace

double cut_of(const Case& c, std::int64_t row) {
  const Problem& p = c.p;
  std::vector<double> sorted = row_of(c, p.selection.by_student ? c.student : c.teacher, row);
  std::sort(sorted.rbegin(), sorted.rend());
  if (p.selection.group_size == 0) return kInfinity;
  if (p.selection.group_size > 0) {
    return p.selection.group_size >= p.classes
               ? -kInfinity
               : sorted[static_cast<std::size_t>(p.selection.group_size) - 1];
  }
  if (p.selection.threshold == 1) {
    return p.compute_in_double() ? std::numeric_limits<double>::lowest()
                                 : std::numeric_limits<float>::lowest();
  }
  long double total = 0, mass = 0;
  const double temperature = p.selection.temperature_or(p.weights.exponent_temperature());
  for (double r : sorted) total += std::exp(static_cast<long double>(r - sorted[0]) / temperature);
  for (double r : sorted) {
    mass += std::exp(static_cast<long double>(r - sorted[0]) / temperature);
    if (mass >= static_cast<long double>(p.selection.threshold) * total) return r;
  }
  return sorted.back();
}

Outcome expect(const Case& c, const Outcome& actual) {
  using Real = long double;
  const Problem& p = c.p;
  const Weights& w = p.weights;
  const Real t = w.exponent_temperature(), t2 = Real(w.temperature) * w.temperature;
  Outcome o;
  o.gradient.assign(c.student.size(), 0);
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::vector<double> s = row_of(c, c.student, row), u = row_of(c, c.teacher, row);
    const char* inside = actual.mask.data() + row * p.classes;
    Real top[2][2], sum[2][2] = {{0, 0}, {0, 0}};  // [student or teacher][group]
    for (auto& side : top) side[0] = side[1] = -kInfinity;
    for (std::int64_t j = 0; j < p.classes; ++j) {
      const int g = inside[j] ? 0 : 1;
      top[0][g] = std::max<Real>(top[0][g], s[j]);
      top[1][g] = std::max<Real>(top[1][g], u[j]);
    }
    for (std::int64_t j = 0; j < p.classes; ++j) {
      const int g = inside[j] ? 0 : 1;
      if (s[j] > -kInfinity) sum[0][g] += std::exp((s[j] - top[0][g]) / t);
      if (u[j] > -kInfinity) sum[1][g] += std::exp((u[j] - top[1][g]) / t);
    }
    Real log_mass[2][2];  // relative to the whole row
    for (int side = 0; side < 2; ++side) {
      Real own[2], high;
      for (int g = 0; g < 2; ++g)
        own[g] = sum[side][g] > 0 ? top[side][g] / t + std::log(sum[side][g]) : -kInfinity;
      high = std::max(own[0], own[1]);
      const Real all = high + std::log(std::exp(own[0] - high) + std::exp(own[1] - high));
      for (int g = 0; g < 2; ++g) log_mass[side][g] = own[g] - all;
    }
    const Real weight[2] = {w.primary, w.secondary};
    Real binary = 0, kl[2] = {0, 0}, q_minus_p[2];
    for (int g = 0; g < 2; ++g) {
      const Real mass_p = std::exp(log_mass[1][g]), mass_q = std::exp(log_mass[0][g]);
      q_minus_p[g] = mass_q - mass_p;
      if (mass_p > 0) binary += mass_p * (log_mass[1][g] - log_mass[0][g]);
    }
    for (std::int64_t j = 0; j < p.classes; ++j) {
      const int g = inside[j] ? 0 : 1;
      auto log_of = [&](double logit, int side) -> Real {
        if (!(logit > -kInfinity)) return -kInfinity;
        return (logit - top[side][g]) / t - std::log(sum[side][g]);
      };
      const Real log_p = log_of(u[j], 1), log_q = log_of(s[j], 0);
      const Real prob_p = std::exp(log_p), prob_q = std::exp(log_q);
      if (prob_p > 0) kl[g] += prob_p * (log_p - log_q);
      const Real factor = weight[g] * (w.coupled ? std::exp(log_mass[1][g]) : 1);
      Real grad = w.binary * q_minus_p[g] * prob_q;
      if (factor != 0) grad += factor * (prob_q - prob_p);
      o.gradient[static_cast<std::size_t>(row * p.classes + j)] =
          static_cast<double>(w.distillation * t2 / t * grad);
    }
    Real loss = w.binary != 0 ? w.binary * binary : 0;
    for (int g = 0; g < 2; ++g) {
      const Real factor = weight[g] * (w.coupled ? std::exp(log_mass[1][g]) : 1);
      if (factor != 0) loss += factor * kl[g];
    }
    loss *= w.distillation * t2;
    if (w.cross_entropy != 0) {
      std::vector<Real> difference;
      loss += w.cross_entropy * cross_entropy_of(c, row, &difference);
      for (std::size_t j = 0; j < difference.size(); ++j) {
        o.gradient[static_cast<std::size_t>(row * p.classes) + j] +=
            static_cast<double>(w.cross_entropy * w.scale * difference[j]);
      }
    }
    o.loss.push_back(static_cast<double>(loss));
    const Real columns[6] = {
        std::exp(log_mass[1][0]), std::exp(log_mass[0][0]), cut_of(c, row), kl[0], binary, kl[1]};
    for (int k = 0; k < 6; ++k) o.columns[k].push_back(static_cast<double>(columns[k]));
    o.size.push_back(std::count(inside, inside + p.classes, 1));
  }
  return o;
}

}  // namespace gkd::cuda::test
