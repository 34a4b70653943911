// Losses under autograd: the forward makes the loss and its gradient together, the backward
// multiplies.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "ops.h"

namespace gkd {

/// Throws where autograd would need what the operators lack: a gradient of the teacher's logits, or
/// forward-mode derivatives of either.
void check_differentiable(const char* name, Ref student, Ref teacher, const char* teacher_name);

/// What a forward knows: the loss, its gradient for each input (undefined: none), each
/// divided by grad_scale, a [] tensor.
struct LossAndGradients {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
  at::Tensor grad_scale;
};

/// The loss as a function of `inputs`; `forward` runs below autograd. `name` is for messages.
at::Tensor attach_gradients(const char* name, at::TensorList inputs,
                            const std::function<LossAndGradients()>& forward);

}  // namespace gkd
