// Every argument check, once, for CPU, CUDA and Meta. Each message names the argument, what was
// expected and what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "math/loss.h"

namespace gkd {

/// Settings as they cross the dispatcher.
struct Settings {
  double threshold;
  std::optional<std::int64_t> group_size;
  double temperature, primary_weight, binary_weight, secondary_weight;
  bool coupled;
  std::string_view rank_by;
  std::int64_t ignore_index;
  std::string_view method;

  Weights weights() const {
    return {temperature, primary_weight, binary_weight, secondary_weight, coupled};
  }
};

/// Throws unless tensors and settings are usable. `name` is the operator's, for the message.
void check_inputs(const char* name, const at::Tensor& student, const at::Tensor& teacher,
                  const std::optional<at::Tensor>& target, const Settings& settings,
                  bool may_lack_classes = false);

/// Throws unless classes class_start to class_start + `classes` are some of num_classes.
void check_shard_range(const char* name, const c10::SymInt& classes, std::int64_t class_start,
                       std::int64_t num_classes);

/// Throws unless reduction is none, mean or sum.
void check_reduction(const char* name, std::string_view reduction);

/// Throws unless the arguments of adaptive_group_size are usable.
void check_adaptive(const char* name, const at::Tensor& student, double rate, std::int64_t step);

/// Throws IndexError naming value and row unless `value` is a class index.
void check_target_value(const char* name, std::int64_t value, std::int64_t classes,
                        std::int64_t row);

/// float64 when either tensor is, else float32: the dtype of arithmetic and loss.
at::ScalarType compute_dtype(const at::Tensor& student, const at::Tensor& teacher);

/// Power of two that a stored float16 gradient is multiplied by, so that its small entries
/// stay above the dtype's smallest number; 1 for wider dtypes. |gradient| <= T (|w_b| + max KL
/// weight).
double gradient_headroom(at::ScalarType student_dtype, const Weights& weights);

}  // namespace gkd
