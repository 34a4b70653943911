// The autograd node of every loss. Nothing here branches on sizes, reads data or synchronises, so
// torch.compile and torch.export trace through.
#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/version.h>

#include <vector>

#include "ops.h"

namespace gkd {

using torch::autograd::AutogradContext;
using torch::autograd::Node;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// What create_graph puts behind a gradient: its own derivative is an error rather than a silent
/// zero.
struct NotDifferentiableTwice : public Node {
  explicit NotDifferentiableTwice(std::string loss) : loss(std::move(loss)) {}
  variable_list apply(variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, loss, " is not differentiable twice");
  }
  std::string loss;
};

namespace {

/// What a forward knows: the loss, its gradient for each input (undefined: none), each
/// divided by grad_scale, a [] tensor.
struct LossAndGradients {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
  at::Tensor grad_scale;
};

/// Whether a tensor is plain memory: no tracing, functionalization or vmap around it.
bool is_plain(const at::Tensor& t) {
  using c10::DispatchKey;
  const c10::DispatchKeySet wrappers({DispatchKey::Python, DispatchKey::Functionalize,
                                      DispatchKey::FuncTorchBatched,
                                      DispatchKey::FuncTorchGradWrapper, DispatchKey::Batched});
  return (t.key_set() & wrappers).empty();
}

/// [...] to [B]; [] stays.
at::Tensor factors_of(Ref grad_output) {
  return grad_output.dim() > 1 ? grad_output.reshape({-1}) : grad_output;
}

/// False, having done nothing, where the tensor's backend has no such kernel.
bool scale_over(Ref gradient, Ref grad_output, Ref grad_scale) {
  static const auto op = find_op<void, at::Tensor, at::Tensor, at::Tensor>("gkd::_scale_");
  const auto key = gradient.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  if (!gradient.key_set().has(key) || !op.hasKernelForDispatchKey(key)) return false;
  op.call(gradient, factors_of(grad_output), grad_scale);
  return true;
}

/// Whether this node's saved gradient is the node's alone, so that nobody sees it change. Without
/// saved-tensor hooks the saved tensor is the one that the forward made; the node and its list of
/// unpacked tensors then hold the only two references to it, and it the only one to its memory.
bool is_alone(const at::Tensor& gradient) {
  return gradient.use_count() == 2 && gradient.storage().use_count() == 1;
}

/// Makes `gradients` an error to differentiate, as functions of all that the running node depends
/// on and of grad_output.
void forbid_second_derivative(const std::string& loss, const Variable& grad_output,
                              variable_list& gradients) {
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 14  // torch's nodes changed their pointer
  const auto node = std::make_shared<NotDifferentiableTwice>(loss);
#else
  const auto node = c10::make_intrusive<NotDifferentiableTwice>(loss);
#endif
  torch::autograd::edge_list edges;
  if (const auto running = torch::autograd::get_current_node()) edges = running->next_edges();
  edges.push_back(torch::autograd::impl::gradient_edge(grad_output));
  node->set_next_edges(std::move(edges));
  for (Variable& g : gradients) {
    if (g.defined()) torch::autograd::create_gradient_edge(g, node);
  }
}

}  // namespace

// Not in an anonymous namespace: profilers and grad_fn show the node's name as it stands.
struct Loss : public torch::autograd::Function<Loss> {
  static Variable forward(AutogradContext* ctx, at::TensorList /*inputs*/, const std::string& name,
                          const std::function<LossAndGradients()>& run) {
    at::AutoDispatchBelowADInplaceOrView guard;
    LossAndGradients made = run();
    // Of the inputs nothing is kept: they may change after the loss was taken.
    variable_list saved = std::move(made.gradients);
    saved.push_back(made.grad_scale);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["name"] = name;
    ctx->saved_data["hooked"] = at::SavedTensorDefaultHooks::get_hooks().has_value();
    return made.loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    // A node whose gradient was written over keeps it until autograd releases it, which an error in
    // a hook prevents.
    TORCH_CHECK(!ctx->saved_data.count("used"), torch::autograd::ERR_BACKWARD_TWICE);
    variable_list saved = ctx->get_saved_variables();
    const Variable grad_scale = saved.back(), &grad_output = grad_outputs[0];
    saved.pop_back();
    // Writing over a gradient saves a second buffer of its size.
    const bool last_use = !torch::autograd::get_current_graph_task_keep_graph() &&
                          !at::GradMode::is_enabled() && !ctx->saved_data["hooked"].toBool() &&
                          is_plain(grad_output);
    variable_list gradients;
    for (Variable& gradient : saved) {
      Variable& to = gradients.emplace_back();
      if (!gradient.defined()) continue;
      at::AutoDispatchBelowADInplaceOrView guard;
      if (last_use && is_plain(gradient) && is_alone(gradient)) {
        ctx->saved_data["used"] = true;
        if (scale_over(gradient, grad_output, grad_scale)) to = gradient;
      }
      if (!to.defined()) {
        to = call<at::Tensor>("gkd::_scale", gradient, factors_of(grad_output), grad_scale);
      }
    }
    if (at::GradMode::is_enabled()) {
      forbid_second_derivative(ctx->saved_data["name"].toStringRef(), grad_output, gradients);
    }
    gradients.resize(gradients.size() + 2);  // of name and forward function: none
    return gradients;
  }
};

namespace {

/// Throws where autograd would need what the operators lack.
void check_differentiable(const char* name, Ref student, Ref teacher, const char* teacher_name,
                          const char* reference = "gkd.reference.loss") {
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && teacher.requires_grad()), name, ": ",
                    teacher_name, " must not require grad; pass ", teacher_name, ".detach()");
  // A tangent would be lost below autograd: an error rather than a silent zero.
  TORCH_CHECK_NOT_IMPLEMENTED(!student._fw_grad(0).defined() && !teacher._fw_grad(0).defined(),
                              name, ": there is no forward-mode derivative; ", reference,
                              " has one");
  // What torch would say of a C++ autograd function names neither the operator nor a way out.
  const bool needs_grad = at::GradMode::is_enabled() && student.requires_grad();
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(needs_grad && student.key_set().has(c10::DispatchKey::FuncTorchGradWrapper)), name,
      ": torch.func.grad, vjp and jacrev are not supported; ", reference, " supports them");
}

}  // namespace

ForwardTensors with_autograd(const char* name, Ref student, Ref teacher, const char* teacher_name,
                             const std::function<ForwardTensors(bool need_grad)>& forward,
                             const char* reference) {
  check_differentiable(name, student, teacher, teacher_name, reference);
  if (at::GradMode::is_enabled() && student.requires_grad()) {
    ForwardTensors made;
    const at::Tensor loss = Loss::apply(student, std::string(name), [&]() -> LossAndGradients {
      made = forward(true);
      // The node alone holds the gradient: see is_alone().
      return {std::get<0>(made), {std::move(std::get<1>(made))}, std::get<2>(made)};
    });
    return {loss, {}, {}, std::get<3>(made), std::get<4>(made)};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward(false);
}

void check_factors_are_constant(const char* name, const OptionalTensor& margins,
                                const OptionalTensor& distillation_factor) {
  const auto check = [name](const char* which, const OptionalTensor& t) {
    TORCH_CHECK_VALUE(!(t && at::GradMode::is_enabled() && t->requires_grad()), name, ": ", which,
                      " must not require grad; pass ", which, ".detach()");
    TORCH_CHECK_NOT_IMPLEMENTED(!(t && t->_fw_grad(0).defined()), name,
                                ": there is no forward-mode derivative of ", which);
  };
  check("margin", margins);
  check("distillation_weight", distillation_factor);
}

namespace {

ForwardTensors forward(const CallOptions& options, Ref student, Ref teacher,
                       const OptionalTensor& target, bool need_grad, bool need_parts = false,
                       const OptionalTensor& margins = {},
                       const OptionalTensor& distillation_factor = {}) {
  return call_op<ForwardTensors>("gkd::_forward", options, student, teacher, target, need_grad,
                                 need_parts, margins, distillation_factor);
}

/// Without a gradient: no [B, C] buffer.
at::Tensor loss_no_grad(const LossOptions& options, Ref student, Ref teacher,
                        const OptionalTensor& target) {
  return std::get<0>(forward(CallOptions{options}, student, teacher, target, /*need_grad=*/false));
}

at::Tensor loss_autograd(const LossOptions& options, Ref student, Ref teacher,
                         const OptionalTensor& target) {
  return std::get<0>(with_autograd(kLoss, student, teacher, "teacher_logits", [&](bool need_grad) {
    if (need_grad) return forward(CallOptions{options}, student, teacher, target, true);
    return ForwardTensors{
        call_op<at::Tensor>(kLoss, options, student, teacher, target), {}, {}, {}, {}};
  }));
}

TensorTriple training_no_grad(const CallOptions& options, Ref student, Ref teacher, Ref target,
                              const OptionalTensor& margins,
                              const OptionalTensor& distillation_factor) {
  return parts_of(forward(options, student, teacher, target, /*need_grad=*/false,
                          /*need_parts=*/true, margins, distillation_factor));
}

TensorTriple training_autograd(const CallOptions& options, Ref student, Ref teacher, Ref target,
                               const OptionalTensor& margins,
                               const OptionalTensor& distillation_factor) {
  check_factors_are_constant(kTrainingLoss, margins, distillation_factor);
  return parts_of(
      with_autograd(kTrainingLoss, student, teacher, "teacher_logits", [&](bool need_grad) {
        if (need_grad) {
          return forward(options, student, teacher, target, true, true, margins,
                         distillation_factor);
        }
        const auto [total, cross_entropy, distillation] = call_op<TensorTriple>(
            kTrainingLoss, options, student, teacher, target, margins, distillation_factor);
        return ForwardTensors{total, {}, {}, cross_entropy, distillation};
      }));
}

at::Tensor with_gradients(Ref loss, Ref /*features*/, Ref /*weight*/,
                          const OptionalTensor& /*features_gradient*/,
                          const OptionalTensor& /*weight_gradient*/) {
  return loss.clone();
}

at::Tensor with_gradients_autograd(Ref loss, Ref features, Ref weight,
                                   const OptionalTensor& features_gradient,
                                   const OptionalTensor& weight_gradient) {
  constexpr const char* kName = "gkd.linear_loss";
  check_differentiable(kName, features, loss, "loss");
  check_differentiable(kName, weight, loss, "loss");
  // Python's object of a tensor counts as a reference to it for as long as it lives; detach() makes
  // a tensor without one.
  const auto own = [](const OptionalTensor& t) { return t ? t->detach() : at::Tensor(); };
  return Loss::apply(at::TensorList({features, weight}), std::string(kName),
                     [&]() -> LossAndGradients {
                       return {loss.clone(),
                               {own(features_gradient), own(weight_gradient)},
                               at::ones({}, loss.options())};
                     });
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("loss", &SettingsOp<loss_no_grad>::call);
  m.impl("training_loss", &SettingsOp<training_no_grad>::call);
  m.impl("_with_gradients", &with_gradients);
}

TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("loss", &SettingsOp<loss_autograd>::call);
  m.impl("training_loss", &SettingsOp<training_autograd>::call);
  m.impl("_with_gradients", &with_gradients_autograd);
  for (const char* name :
       {"group", "adaptive_group_size", "_forward", "_check_target", "_scale", "_scale_"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace gkd
