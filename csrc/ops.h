// What the backends register: the operators' tensors, and the checks in front of every backend.
#pragma once

#include <torch/library.h>

#include <tuple>

#include "check.h"
#include "math/dtype.h"
#include "settings.h"

namespace gkd {

using Ref = const at::Tensor&;
using OptionalTensor = std::optional<at::Tensor>;
using TensorPair = std::tuple<at::Tensor, at::Tensor>;

/// loss: [] or [B] ("none"), reduced. gradient: [B, C] in the student's dtype, that of the loss
/// divided by grad_scale; [0] without need_grad. grad_scale: [], a power of two (math/loss.h).
using ForwardTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
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

template <ForwardTensors (*F)(const LossOptions&, Ref, Ref, const OptionalTensor&, bool)>
ForwardTensors checked_forward(const LossOptions& o, Ref student, Ref teacher,
                               const OptionalTensor& target, bool need_grad) {
  check_inputs("gkd::loss", student, teacher, target, o);
  return F(o, student, teacher, target, need_grad);
}

template <GroupTensors (*F)(const LossOptions&, Ref, Ref, const OptionalTensor&, bool)>
GroupTensors checked_group(const LossOptions& o, Ref student, Ref teacher,
                           const OptionalTensor& target, bool return_mask) {
  check_inputs("gkd::group", student, teacher, target, o);
  return F(o, student, teacher, target, return_mask);
}

/// Registers a backend's operators on whole rows.
template <auto forward, auto group, auto scale>
void register_ops(torch::Library& m) {
  m.impl("_forward", &SettingsOp<checked_forward<forward>>::call);
  m.impl("group", &SettingsOp<checked_group<group>>::call);
  m.impl("_scale", scale);
}

}  // namespace gkd
