// What the backends register: the operators' tensors, and the checks in front of every backend.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <functional>
#include <tuple>

#include "check.h"
#include "math/dtype.h"
#include "settings.h"

namespace gkd {

using Ref = const at::Tensor&;
using OptionalTensor = std::optional<at::Tensor>;
using TensorPair = std::tuple<at::Tensor, at::Tensor>;
using TensorTriple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// loss: [] or [...] ("none"), reduced. gradient: [..., C] in the student's dtype, that of the loss
/// divided by grad_scale; [0] without need_grad. grad_scale: [], a power of two (math/loss.h).
/// cross_entropy, distillation: as loss; [0] without need_parts.
using ForwardTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
/// size, mass_teacher, mass_student, cut, primary, binary, secondary, mask.
using GroupTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor, at::Tensor>;

/// Of logits that the checks have let through.
inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kFloat:
      return Dtype::kFloat;
    default:
      return Dtype::kDouble;
  }
}

/// [..., C] as rows [B, C]. Logits that reshape() cannot view are copied.
inline at::Tensor by_row(Ref t) {
  if (t.dim() == 2) return t;
  const auto leading = t.sym_sizes().slice(0, t.dim() - 1);
  return t.reshape_symint({c10::multiply_integers(leading), t.sym_size(-1)});
}
/// [...] as [B].
inline OptionalTensor by_row(const OptionalTensor& t) {
  return t && t->dim() != 1 ? t->reshape({-1}) : t;
}

/// A value per row of [..., C], not yet written.
inline at::Tensor empty_column(Ref logits, const at::TensorOptions& options) {
  return at::empty_symint(logits.sym_sizes().slice(0, logits.dim() - 1), options);
}
/// One as the reduction has it.
inline at::Tensor empty_loss(const LossOptions& o, Ref logits, const at::TensorOptions& options) {
  return o.reduction == "none" ? empty_column(logits, options) : at::empty({}, options);
}
/// A value per class, or [0].
inline at::Tensor empty_matrix(bool needed, Ref logits, const at::TensorOptions& options) {
  return needed ? at::empty_symint(logits.sym_sizes(), options) : at::empty({0}, options);
}

/// What `_forward` and `group` return, contiguous and not yet written.
inline ForwardTensors empty_forward(const LossOptions& o, Ref student, Ref teacher, bool need_grad,
                                    bool need_parts) {
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  const auto part = [&] {
    return need_parts ? empty_loss(o, student, options) : at::empty({0}, options);
  };
  return {empty_loss(o, student, options), empty_matrix(need_grad, student, student.options()),
          at::empty({}, options), part(), part()};
}
inline GroupTensors empty_group(Ref student, Ref teacher, bool return_mask) {
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  const auto column = [&] { return empty_column(student, options); };
  return {empty_column(student, options.dtype(at::kLong)),
          column(),
          column(),
          column(),
          column(),
          column(),
          column(),
          empty_matrix(return_mask, student, options.dtype(at::kBool))};
}

inline constexpr char kLoss[] = "gkd::loss", kTrainingLoss[] = "gkd::training_loss",
                      kGroup[] = "gkd::group";

/// The options with the tensors of a call.
inline CallOptions with_factors(CallOptions o, const OptionalTensor& margins,
                                const OptionalTensor& distillation_factor) {
  o.training.margins = margins;
  o.training.distillation_factor = distillation_factor;
  return o;
}

/// The kernels of _forward and group: they check, make the results, and let a backend's fill()
/// write them from rows.
template <auto fill>
ForwardTensors checked_forward(const CallOptions& given, Ref student, Ref teacher,
                               const OptionalTensor& target, bool need_grad, bool need_parts,
                               const OptionalTensor& margins,
                               const OptionalTensor& distillation_factor) {
  const char* name = need_parts ? kTrainingLoss : kLoss;
  CallOptions o = with_factors(given, margins, distillation_factor);
  check_inputs(name, student, teacher, target, o);
  check_training(name, student, target, o);
  const ForwardTensors made = empty_forward(o, student, teacher, need_grad, need_parts);
  if constexpr (!std::is_null_pointer_v<decltype(fill)>) {
    o.training.margins = by_row(margins);
    fill(o, by_row(student).resolve_neg(), by_row(teacher).resolve_neg(), by_row(target), made);
  }
  return made;
}
template <auto fill>
GroupTensors checked_group(const LossOptions& o, Ref student, Ref teacher,
                           const OptionalTensor& target, bool return_mask) {
  check_inputs(kGroup, student, teacher, target, o);
  const GroupTensors made = empty_group(student, teacher, return_mask);
  if constexpr (!std::is_null_pointer_v<decltype(fill)>) {
    fill(CallOptions{o}, by_row(student).resolve_neg(), by_row(teacher).resolve_neg(),
         by_row(target), made);
  }
  return made;
}

/// What forward(need_grad) returns, which runs below autograd, with its loss as a function of
/// `student`; the gradient is undefined. Throws where autograd would need what the operators lack:
/// a gradient of the teacher's logits, or forward-mode derivatives of either. The names are for
/// messages; `reference` has those derivatives.
ForwardTensors with_autograd(const char* name, Ref student, Ref teacher, const char* teacher_name,
                             const std::function<ForwardTensors(bool need_grad)>& forward,
                             const char* reference = "gkd.reference.loss");

/// Throws where margins or distillation factor require grad, which they do not get.
void check_factors_are_constant(const char* name, const OptionalTensor& margins,
                                const OptionalTensor& distillation_factor);

/// What training_loss returns of them.
inline TensorTriple parts_of(const ForwardTensors& made) {
  const auto& [loss, gradient, grad_scale, cross_entropy, distillation] = made;
  return {loss, cross_entropy, distillation};
}

/// gradient * grad_output * grad_scale, by a backend's scale(in, out, grad_output, grad_scale) of
/// contiguous tensors; `out` may be `in`.
template <auto scale>
at::Tensor scaled(Ref gradient, Ref grad_output, Ref grad_scale) {
  at::Tensor out = at::empty_symint(gradient.sym_sizes(), gradient.options());
  if constexpr (!std::is_null_pointer_v<decltype(scale)>) {
    scale(gradient.contiguous(), out, grad_output, grad_scale);
  }
  return out;
}
template <auto scale>
void scale_in_place(Ref gradient, Ref grad_output, Ref grad_scale) {
  scale(gradient, gradient, grad_output, grad_scale);
}

/// Registers a backend's operators on whole rows; a nullptr writes nothing.
template <auto forward = nullptr, auto group = nullptr, auto scale = nullptr>
void register_ops(torch::Library& m) {
  m.impl("_forward", &SettingsOp<&checked_forward<forward>>::call);
  m.impl("group", &SettingsOp<&checked_group<group>>::call);
  m.impl("_scale", &scaled<scale>);
  if constexpr (!std::is_null_pointer_v<decltype(scale)>) m.impl("_scale_", &scale_in_place<scale>);
}

}  // namespace gkd
