// gkd::loss under autograd. Nothing here branches on sizes, reads data or synchronises, so
// torch.compile and torch.export trace through.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "saved_gradient.h"

namespace gkd {

// Not in an anonymous namespace: profilers and grad_fn show the node's name as it stands.
struct Loss : public torch::autograd::Function<Loss> {
  static Variable forward(AutogradContext* ctx, const Variable& student, const Variable& teacher,
                          const OptionalTensor& target, const Settings& settings,
                          std::string_view reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return save_gradient(
        ctx, student, settings,
        forward_op(student, teacher, target, settings, reduction, /*need_grad=*/true));
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    return scaled_gradient(ctx, grad_outputs[0], /*inputs=*/5);
  }
};

namespace {

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
  check_differentiable("gkd::loss", student, teacher);
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
