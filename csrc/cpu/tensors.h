// Torch's tensors as rows of the CPU kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>

#include "cpu/parallel.h"
#include "ops.h"

namespace gkd::cpu {

inline LogitsRow logits_row(const at::Tensor& t, std::int64_t row) {
  const char* data = static_cast<const char*>(t.const_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};
}

/// Of a contiguous gradient; no row where none is asked for.
inline GradientRow gradient_row(const at::Tensor& t, std::int64_t row) {
  if (t.numel() == 0) return {};
  char* data = static_cast<char*>(t.mutable_data_ptr());
  return {data + row * t.size(-1) * t.element_size(), dtype_of(t)};
}

/// A row's target, unchecked; -1 where there is none.
struct RowTarget {
  std::int64_t value = -1;
  bool ignored = false;
};

/// The rows of a call as tasks of the kernels.
struct Rows {
  const CallOptions& options;
  const at::Tensor &student, &teacher;
  const OptionalTensor& targets;
  const Kernels::Arithmetic& kernels;
  const Weights weights = with_factor(options);
  const at::Tensor margins =
      options.training.margins ? options.training.margins->to(at::kDouble) : at::Tensor();
  at::Tensor gradient{};
  double gradient_scale = 1;

  Rows(const CallOptions& options, Ref student, Ref teacher, const OptionalTensor& targets)
      : options(options),
        student(student),
        teacher(teacher),
        targets(targets),
        kernels(cpu::kernels().of(compute_dtype(student, teacher) == at::kDouble)) {}

  std::int64_t count() const { return student.size(0); }
  std::int64_t classes() const { return student.size(1); }
  RowTarget target(std::int64_t row) const {
    if (!targets) return {};
    const std::int64_t offset = row * targets->stride(0);
    const std::int64_t value = targets->scalar_type() == at::kLong
                                   ? targets->const_data_ptr<std::int64_t>()[offset]
                                   : targets->const_data_ptr<std::int32_t>()[offset];
    return value == options.ignore_index ? RowTarget{-1, true} : RowTarget{value, false};
  }
  /// Of a row's target.
  double margin(std::int64_t row) const {
    const double own =
        margins.defined() ? margins.const_data_ptr<double>()[row * margins.stride(0)] : 0.0;
    return options.training.margin + own;
  }
  /// `target`: that of the task.
  RowTask task(std::int64_t row, std::int64_t target) const {
    RowTask task;
    task.student = logits_row(student, row);
    // Of a TeacherGroup the logits are [n].
    if (teacher.dim() == 2) task.teacher = logits_row(teacher, row);
    task.gradient = gradient_row(gradient, row);
    task.classes = classes();
    task.target = target;
    task.gradient_scale = gradient_scale;
    task.selection = selection_of(options);
    task.weights = weights;
    task.margin = margin(row);
    if (options.training.distill_margin) {
      for (LogitsRow* logits : {&task.student, &task.teacher}) {
        logits->lowered = target;
        logits->lowered_by = task.margin;
      }
    }
    return task;
  }
  /// Of an ignored row.
  void clear_gradient(std::int64_t row) const {
    const GradientRow to = gradient_row(gradient, row);
    if (to.data) std::memset(to.data, 0, classes() * gradient.itemsize());
  }
  /// Calls body(row, executor, scratch) for every row.
  template <class Body>
  void for_each(Body body) const {
    for_each_row(count(), classes(), body);
  }

  /// The factor of the reduction.
  double weight() const {
    std::int64_t counted = 0;
    for (std::int64_t row = 0; row < count(); ++row) counted += !target(row).ignored;
    return options.reduction == "mean" && counted > 0 ? 1.0 / static_cast<double>(counted) : 1.0;
  }
  GradScale grad_scale() const {
    return gkd::grad_scale(weight(), weights, student.scalar_type() == at::kHalf);
  }

 private:
  static Weights with_factor(const CallOptions& options) {
    Weights weights = weights_of(options);
    const OptionalTensor& factor = options.training.distillation_factor;
    if (factor) weights.distillation *= factor->item<double>();
    return weights;
  }
};

}  // namespace gkd::cpu
