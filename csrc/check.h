// Every argument check, once, for CPU, CUDA and Meta. Each message names the argument, what was
// expected and what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "settings.h"

namespace gkd {

/// Throws unless tensors and options are usable. `name` is the operator's, for the
/// message.
void check_inputs(const char* name, const at::Tensor& student, const at::Tensor& teacher,
                  const std::optional<at::Tensor>& target, const LossOptions& options,
                  bool is_shard = false);

/// The same of what training_loss has beside them; the tensors are in `options`.
void check_training(const char* name, const at::Tensor& student,
                    const std::optional<at::Tensor>& target, const CallOptions& options);

/// Throws unless classes class_start to class_start + `classes` are some of num_classes.
void check_shard_range(const char* name, const c10::SymInt& classes, std::int64_t class_start,
                       std::int64_t num_classes);

/// Throws unless the arguments of adaptive_group_size are usable.
void check_adaptive(const char* name, const at::Tensor& student, double rate, std::int64_t step);

/// Throws IndexError naming value and row unless `value` is a class index.
void check_target_value(const char* name, std::int64_t value, std::int64_t classes,
                        std::int64_t row);

/// float64 when either tensor is, else float32: the dtype of arithmetic and loss.
at::ScalarType compute_dtype(const at::Tensor& student, const at::Tensor& teacher);

}  // namespace gkd
