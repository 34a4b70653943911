// Typed dispatcher handles of the operators, looked up once.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

#include "check.h"

namespace gkd {

using GroupTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

at::Tensor loss_op(const at::Tensor& student, const at::Tensor& teacher,
                   const OptionalTensor& target, const Settings& settings,
                   std::string_view reduction);
GroupTensors group_op(const at::Tensor& student, const at::Tensor& teacher,
                      const OptionalTensor& target, const Settings& settings, bool return_mask);
std::tuple<at::Tensor, at::Tensor> forward_op(const at::Tensor& student, const at::Tensor& teacher,
                                              const OptionalTensor& target,
                                              const Settings& settings, bool need_grad);
at::Tensor scale_op(const at::Tensor& gradient, const at::Tensor& row_scale, double factor);

}  // namespace gkd
