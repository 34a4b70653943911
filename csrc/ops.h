// The operators inside the library: typed dispatcher handles, and the adapters by which a backend
// registers functions of a Settings struct under schemas of scalars.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

#include "check.h"
#include "dtype.h"

namespace gkd {

struct LossOptions;

using OptionalTensor = std::optional<at::Tensor>;
using OptionalSize = std::optional<std::int64_t>;

/// loss: [] or [B] ("none"), reduced. gradient: [B, C] in the student's dtype, of the row losses
/// times stored_scale(weight) and the headroom; [0] without need_grad. weight: [], the factor of
/// the reduction: 1/counted rows for "mean", else 1.
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

/// The public options as they cross the dispatcher; views of `options`.
Settings settings_of(const LossOptions& options);

at::Tensor loss_op(const at::Tensor& student, const at::Tensor& teacher,
                   const OptionalTensor& target, const Settings& settings,
                   std::string_view reduction);
GroupTensors group_op(const at::Tensor& student, const at::Tensor& teacher,
                      const OptionalTensor& target, const Settings& settings, bool return_mask);
ForwardTensors forward_op(const at::Tensor& student, const at::Tensor& teacher,
                          const OptionalTensor& target, const Settings& settings,
                          std::string_view reduction, bool need_grad);
at::Tensor scale_op(const at::Tensor& gradient, const at::Tensor& grad_output,
                    const at::Tensor& weight, double factor);
/// In place; false, having done nothing, where the tensors' backend has no such kernel.
bool scale_in_place_op(const at::Tensor& gradient, const at::Tensor& grad_output,
                       const at::Tensor& weight, double factor);

void check_target_op(const at::Tensor& target, c10::SymInt classes, std::int64_t ignore_index);

/// A function of Settings under the schema of gkd::loss; it checks nothing.
template <at::Tensor (*F)(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                          const Settings&, std::string_view)>
at::Tensor with_settings(const at::Tensor& student, const at::Tensor& teacher,
                         const OptionalTensor& target, double threshold, OptionalSize group_size,
                         double temperature, double primary_weight, double binary_weight,
                         double secondary_weight, bool coupled, c10::string_view rank_by,
                         c10::string_view reduction, std::int64_t ignore_index,
                         c10::string_view method) {
  return F(student, teacher, target,
           {threshold, group_size, temperature, primary_weight, binary_weight, secondary_weight,
            coupled, rank_by, ignore_index, method},
           reduction);
}

/// A backend's function under the schema of gkd::_forward, behind the one set of checks.
template <ForwardTensors (*F)(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                              const Settings&, std::string_view, bool)>
ForwardTensors checked_forward(const at::Tensor& student, const at::Tensor& teacher,
                               const OptionalTensor& target, double threshold,
                               OptionalSize group_size, double temperature, double primary_weight,
                               double binary_weight, double secondary_weight, bool coupled,
                               c10::string_view rank_by, c10::string_view reduction,
                               std::int64_t ignore_index, bool need_grad, c10::string_view method) {
  const Settings s{threshold,        group_size, temperature, primary_weight, binary_weight,
                   secondary_weight, coupled,    rank_by,     ignore_index,   method};
  check_inputs("gkd::loss", student, teacher, target, s);
  check_reduction("gkd::loss", reduction);
  return F(student, teacher, target, s, reduction, need_grad);
}

/// The same for gkd::group, whose settings have no weights.
template <GroupTensors (*F)(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                            const Settings&, bool)>
GroupTensors checked_group(const at::Tensor& student, const at::Tensor& teacher,
                           const OptionalTensor& target, double threshold, OptionalSize group_size,
                           double temperature, c10::string_view rank_by, std::int64_t ignore_index,
                           bool return_mask, c10::string_view method) {
  const Settings s{threshold, group_size, temperature, 1.0,          1.0,
                   1.0,       false,      rank_by,     ignore_index, method};
  check_inputs("gkd::group", student, teacher, target, s);
  return F(student, teacher, target, s, return_mask);
}

}  // namespace gkd
