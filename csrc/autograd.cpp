// gkd::loss: the forward emits loss and gradient together, the backward only scales.
//
// Neither function branches on sizes, reads data or synchronises, so torch.compile and torch.export
// trace through them.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "ops.h"

namespace gkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Per-row factor of the reduction: what d(loss)/d(row loss) is.
at::Tensor row_weights(const at::Tensor& rows, const OptionalTensor& target,
                       std::string_view reduction, std::int64_t ignore_index) {
  at::Tensor ones = at::ones_like(rows);
  if (reduction != "mean") return ones;
  if (!target) return ones / at::sum(ones).clamp_min(1);
  // All rows ignored: 0/1, documented as loss 0.
  return ones / at::sum(target->ne(ignore_index).to(rows.scalar_type())).clamp_min(1);
}

at::Tensor reduce_rows(const at::Tensor& rows, const at::Tensor& weights, std::string_view reduction) {
  if (reduction == "none") return rows;
  const at::Tensor sum = rows.sum();
  // One weight serves every row; B = 0 has none, and its sum is 0 whatever the weight.
  return reduction == "sum" ? sum : (rows * weights).sum();
}

/// gradient * row_scale, whose own derivative is an error rather than a silent zero.
struct Scale : public torch::autograd::Function<Scale> {
  static Variable forward(AutogradContext*, const Variable& /*student*/, const Variable& row_scale,
                          const Variable& gradient, double factor) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return scale_op(gradient, row_scale, factor);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "gkd::loss is not differentiable twice");
  }
};

struct Loss : public torch::autograd::Function<Loss> {
  static Variable forward(AutogradContext* ctx, const Variable& student, const Variable& teacher,
                          const OptionalTensor& target, const Settings& settings,
                          const std::string& reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [rows, gradient] = forward_op(student, teacher, target, settings, true);
    const at::Tensor weights = row_weights(rows, target, reduction, settings.ignore_index);
    ctx->save_for_backward({student, gradient, weights});
    ctx->saved_data["headroom"] =
        gradient_headroom(student.scalar_type(), settings.weights());
    return reduce_rows(rows, weights, reduction);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor row_scale = grad_outputs[0] * saved[2];
    const double factor = 1.0 / ctx->saved_data["headroom"].toDouble();
    return {Scale::apply(saved[0], row_scale, saved[1], factor), Variable(), Variable(), Variable(),
            Variable()};
  }
};

Settings pack(double threshold, std::optional<std::int64_t> group_size, double temperature,
              double primary_weight, double binary_weight, double secondary_weight, bool coupled,
              c10::string_view rank_by, std::int64_t ignore_index) {
  return {threshold,        group_size, temperature,  primary_weight, binary_weight,
          secondary_weight, coupled,    rank_by,      ignore_index};
}

/// Without a gradient: no [B, C] buffer.
at::Tensor loss_no_grad(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& target, double threshold,
                        std::optional<std::int64_t> group_size, double temperature,
                        double primary_weight, double binary_weight, double secondary_weight,
                        bool coupled, c10::string_view rank_by, c10::string_view reduction,
                        std::int64_t ignore_index) {
  const Settings s = pack(threshold, group_size, temperature, primary_weight, binary_weight,
                          secondary_weight, coupled, rank_by, ignore_index);
  check_inputs("gkd::loss", student, teacher, target, s);
  check_reduction("gkd::loss", reduction);
  const at::Tensor rows = std::get<0>(forward_op(student, teacher, target, s, false));
  return reduce_rows(rows, row_weights(rows, target, reduction, ignore_index), reduction);
}

at::Tensor loss_autograd(const at::Tensor& student, const at::Tensor& teacher,
                         const OptionalTensor& target, double threshold,
                         std::optional<std::int64_t> group_size, double temperature,
                         double primary_weight, double binary_weight, double secondary_weight,
                         bool coupled, c10::string_view rank_by, c10::string_view reduction,
                         std::int64_t ignore_index) {
  const Settings s = pack(threshold, group_size, temperature, primary_weight, binary_weight,
                          secondary_weight, coupled, rank_by, ignore_index);
  check_inputs("gkd::loss", student, teacher, target, s);
  check_reduction("gkd::loss", reduction);
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && teacher.requires_grad()),
                    "gkd::loss: teacher needs no gradient; pass teacher.detach()");
  if (at::GradMode::is_enabled() && student.requires_grad()) {
    return Loss::apply(student, teacher, target, s, std::string(reduction));
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return loss_op(student, teacher, target, s, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) { m.impl("loss", &loss_no_grad); }

TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("loss", &loss_autograd);
  m.impl("group", torch::autograd::autogradNotImplementedFallback());
  m.impl("_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("_scale", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace gkd
