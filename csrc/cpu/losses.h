// What the rows of a call yield, reduced, as the tensors of a forward.
#pragma once

#include <ATen/ATen.h>

#include <numeric>
#include <vector>

#include "cpu/tensors.h"

namespace gkd::cpu {

/// t[k] = value, in the dtype of a loss.
inline void set(const at::Tensor& t, std::int64_t k, double value) {
  if (t.scalar_type() == at::kDouble) {
    t.mutable_data_ptr<double>()[k] = value;
  } else {
    t.mutable_data_ptr<float>()[k] = static_cast<float>(value);
  }
}

/// Whether cross-entropy and distillation are asked for one by one.
inline bool has_parts(const ForwardTensors& made) {
  return std::get<3>(made).sizes() == std::get<0>(made).sizes();
}

/// The losses of every row.
struct Losses {
  const ForwardTensors& made;
  const GradScale scale;
  std::vector<double> total, cross_entropy, distillation;

  /// Gives the rows their gradient.
  Losses(Rows* rows, const ForwardTensors& made)
      : made(made),
        scale(rows->grad_scale()),
        total(rows->count()),
        cross_entropy(rows->count()),
        distillation(rows->count()) {
    rows->gradient = std::get<1>(made);
    rows->gradient_scale = scale.forward;
  }

  void set_row(std::int64_t row, const RowResult& r) {
    total[row] = r.loss;
    cross_entropy[row] = r.cross_entropy;
    distillation[row] = r.distillation;
  }

  void write(const Rows& rows) {
    const auto report = [&](const at::Tensor& t, std::vector<double>& values) {
      if (rows.options.reduction != "none") {
        values = {rows.weight() * std::accumulate(values.begin(), values.end(), 0.0)};
      }
      for (std::int64_t k = 0; k < t.numel(); ++k) set(t, k, values[k]);
    };
    const auto& [loss, gradient, backward_scale, entropy_part, distillation_part] = made;
    report(loss, total);
    if (has_parts(made)) {
      report(entropy_part, cross_entropy);
      report(distillation_part, distillation);
    }
    set(backward_scale, 0, scale.backward);
  }
};

}  // namespace gkd::cpu
