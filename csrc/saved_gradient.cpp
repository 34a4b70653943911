#include "saved_gradient.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/graph_task.h>

namespace gkd {

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

namespace {

/// Whether a tensor is plain memory: no tracing, functionalization or vmap around it.
bool is_plain(const at::Tensor& t) {
  using c10::DispatchKey;
  const c10::DispatchKeySet wrappers({DispatchKey::Python, DispatchKey::Functionalize,
                                      DispatchKey::FuncTorchBatched,
                                      DispatchKey::FuncTorchGradWrapper, DispatchKey::Batched});
  return (t.key_set() & wrappers).empty();
}

}  // namespace

void check_differentiable(const char* name, const Variable& student, const Variable& teacher) {
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && teacher.requires_grad()), name,
                    ": teacher needs no gradient; pass teacher.detach()");
  // A tangent would be lost below autograd: an error rather than a silent zero.
  TORCH_CHECK_NOT_IMPLEMENTED(!student._fw_grad(0).defined() && !teacher._fw_grad(0).defined(),
                              name, " has no forward-mode derivative; gkd.reference.loss has");
  // What torch would say of a C++ autograd function names neither the operator nor a way out.
  const bool wanted = at::GradMode::is_enabled() && student.requires_grad();
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(wanted && student.key_set().has(c10::DispatchKey::FuncTorchGradWrapper)), name,
      " does not work under torch.func.grad, vjp and jacrev; gkd.reference.loss does");
}

Variable save_gradient(AutogradContext* ctx, const Variable& student, const Settings& settings,
                       const ForwardTensors& forward) {
  const auto& [loss, gradient, weight] = forward;
  ctx->save_for_backward({student, gradient, weight});
  ctx->saved_data["headroom"] = gradient_headroom(student.scalar_type(), settings.weights());
  return loss;
}

variable_list scaled_gradient(AutogradContext* ctx, const Variable& grad_output, int inputs) {
  const auto saved = ctx->get_saved_variables();
  const Variable &student = saved[0], &gradient = saved[1], &weight = saved[2];
  const double factor = 1.0 / ctx->saved_data["headroom"].toDouble();
  variable_list grads(inputs);
  // The last use of the graph may write over the saved gradient: no second [B, C] buffer.
  if (!torch::autograd::get_current_graph_task_keep_graph() && is_plain(gradient) &&
      is_plain(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    if (scale_in_place_op(gradient, grad_output, weight, factor)) {
      grads[0] = gradient;
      return grads;
    }
  }
  grads[0] = Scale::apply(student, grad_output, gradient, weight, factor);
  return grads;
}

}  // namespace gkd
