// What the losses' autograd functions share: the forward emits loss and gradient together, the
// backward only scales.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "ops.h"

namespace gkd {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Throws where autograd would need what the operators lack: a gradient of the teacher's logits, or
/// forward-mode derivatives.
void check_differentiable(const char* name, const Variable& student, const Variable& teacher);

/// Keeps what the backward scales; returns the loss.
Variable save_gradient(AutogradContext* ctx, const Variable& student, const Settings& settings,
                       const ForwardTensors& forward);

/// The student's gradient, followed by nothing for the other inputs of `inputs` in all.
variable_list scaled_gradient(AutogradContext* ctx, const Variable& grad_output, int inputs);

}  // namespace gkd
