// gkd::loss: the forward emits loss and gradient together, the backward only scales.
//
// Neither function branches on sizes, reads data or synchronises, so torch.compile and torch.export
// trace through them.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include "ops.h"

namespace gkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// gradient * grad_output, whose own derivative is an error rather than a silent zero.
struct Scale : public torch::autograd::Function<Scale> {
  static Variable forward(AutogradContext*, const Variable& /*student*/,
                          const Variable& grad_output, const Variable& gradient,
                          const Variable& weight, double factor) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return scale_op(gradient, grad_output, weight, factor);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "gkd::loss is not differentiable twice");
  }
};

/// Whether a tensor is plain memory: no tracing, functionalization or vmap around it.
bool is_plain(const at::Tensor& t) {
  using c10::DispatchKey;
  const c10::DispatchKeySet wrappers({DispatchKey::Python, DispatchKey::Functionalize,
                                      DispatchKey::FuncTorchBatched,
                                      DispatchKey::FuncTorchGradWrapper, DispatchKey::Batched});
  return (t.key_set() & wrappers).empty();
}

struct Loss : public torch::autograd::Function<Loss> {
  static Variable forward(AutogradContext* ctx, const Variable& student, const Variable& teacher,
                          const OptionalTensor& target, const Settings& settings,
                          std::string_view reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, gradient, weight] =
        forward_op(student, teacher, target, settings, reduction, /*need_grad=*/true);
    ctx->save_for_backward({student, gradient, weight});
    ctx->saved_data["headroom"] = gradient_headroom(student.scalar_type(), settings.weights());
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const double factor = 1.0 / ctx->saved_data["headroom"].toDouble();
    const Variable &grad_output = grad_outputs[0], &gradient = saved[1];
    // The last use of the graph may write over the saved gradient: no second [B, C] buffer.
    if (!torch::autograd::get_current_graph_task_keep_graph() && is_plain(gradient) &&
        is_plain(grad_output)) {
      at::AutoDispatchBelowADInplaceOrView guard;
      if (scale_in_place_op(gradient, grad_output, saved[2], factor)) {
        return {gradient, Variable(), Variable(), Variable(), Variable()};
      }
    }
    return {Scale::apply(saved[0], grad_output, gradient, saved[2], factor), Variable(), Variable(),
            Variable(), Variable()};
  }
};

/// Without a gradient: no [B, C] buffer.
at::Tensor loss_no_grad(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& target, const Settings& settings,
                        std::string_view reduction) {
  return std::get<0>(forward_op(student, teacher, target, settings, reduction,
                                /*need_grad=*/false));
}

at::Tensor loss_autograd(const at::Tensor& student, const at::Tensor& teacher,
                         const OptionalTensor& target, const Settings& settings,
                         std::string_view reduction) {
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && teacher.requires_grad()),
                    "gkd::loss: teacher needs no gradient; pass teacher.detach()");
  // A tangent would be lost below autograd: an error rather than a silent zero.
  TORCH_CHECK_NOT_IMPLEMENTED(!student._fw_grad(0).defined() && !teacher._fw_grad(0).defined(),
                              "gkd::loss has no forward-mode derivative; gkd.reference.loss has");
  if (at::GradMode::is_enabled() && student.requires_grad()) {
    return Loss::apply(student, teacher, target, settings, reduction);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return loss_op(student, teacher, target, settings, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("loss", &with_settings<loss_no_grad>);
}

TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("loss", &with_settings<loss_autograd>);
  m.impl("group", torch::autograd::autogradNotImplementedFallback());
  m.impl("_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("_check_target", torch::autograd::autogradNotImplementedFallback());
  m.impl("_scale", torch::autograd::autogradNotImplementedFallback());
  m.impl("_scale_", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace gkd
