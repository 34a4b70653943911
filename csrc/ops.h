// What the backends register: the operators' tensors, and the checks in front of every backend.
#pragma once

#include <torch/library.h>

#include <tuple>
#include <vector>

#include "check.h"
#include "math/dtype.h"
#include "settings.h"

namespace gkd {

using Ref = const at::Tensor&;
using OptionalTensor = std::optional<at::Tensor>;
using TensorPair = std::tuple<at::Tensor, at::Tensor>;

/// loss: [] or [...] ("none"), reduced. gradient: [..., C] in the student's dtype, that of the loss
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

/// Logits [..., C] as rows [B, C] for a backend, and its results in the caller's shape. Logits that
/// reshape() cannot view are copied.
class RowView {
 public:
  explicit RowView(Ref logits)
      : shape_(logits.sym_sizes().vec()), leading_(shape_.begin(), shape_.end() - 1) {}

  at::Tensor rows(Ref logits) const {
    if (shape_.size() == 2) return logits;
    return logits.reshape_symint({c10::multiply_integers(leading_), shape_.back()});
  }
  OptionalTensor target(const OptionalTensor& t) const {
    return t && shape_.size() != 2 ? t->reshape_symint({c10::multiply_integers(leading_)}) : t;
  }
  /// [B] to [...]
  at::Tensor column(Ref t) const { return shape_.size() == 2 ? t : t.view_symint(leading_); }
  /// [B, C] to [..., C]; [0] stays.
  at::Tensor matrix(Ref t) const {
    return shape_.size() == 2 || t.dim() == 1 ? t : t.view_symint(shape_);
  }
  ForwardTensors restored(const LossOptions& o, const ForwardTensors& made) const {
    const auto& [loss, gradient, grad_scale] = made;
    return {o.reduction == "none" ? column(loss) : loss, matrix(gradient), grad_scale};
  }

 private:
  std::vector<c10::SymInt> shape_, leading_;
};

template <ForwardTensors (*F)(const LossOptions&, Ref, Ref, const OptionalTensor&, bool)>
ForwardTensors checked_forward(const LossOptions& o, Ref student, Ref teacher,
                               const OptionalTensor& target, bool need_grad) {
  check_inputs("gkd::loss", student, teacher, target, o);
  const RowView view(student);
  return view.restored(
      o, F(o, view.rows(student), view.rows(teacher), view.target(target), need_grad));
}

template <GroupTensors (*F)(const LossOptions&, Ref, Ref, const OptionalTensor&, bool)>
GroupTensors checked_group(const LossOptions& o, Ref student, Ref teacher,
                           const OptionalTensor& target, bool return_mask) {
  check_inputs("gkd::group", student, teacher, target, o);
  const RowView view(student);
  auto [size, p, q, cut, primary, binary, secondary, mask] =
      F(o, view.rows(student), view.rows(teacher), view.target(target), return_mask);
  return {view.column(size),    view.column(p),      view.column(q),         view.column(cut),
          view.column(primary), view.column(binary), view.column(secondary), view.matrix(mask)};
}

/// Registers a backend's operators on whole rows.
template <auto forward, auto group, auto scale>
void register_ops(torch::Library& m) {
  m.impl("_forward", &SettingsOp<checked_forward<forward>>::call);
  m.impl("group", &SettingsOp<checked_group<group>>::call);
  m.impl("_scale", scale);
}

}  // namespace gkd
