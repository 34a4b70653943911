// Converts tensors to a cuda::Problem.
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/launch.h"
#include "ops.h"

namespace gkd::cuda {

inline Matrix matrix_of(const at::Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), dtype_of(t)};
}

inline Problem problem_of(const at::Tensor& student, const at::Tensor& teacher,
                          const OptionalTensor& target, const LossOptions& s) {
  Problem p;
  p.student = matrix_of(student);
  p.teacher = matrix_of(teacher);
  if (target) {
    p.target = {target->const_data_ptr(), target->stride(0), target->scalar_type() == at::kInt,
                s.ignore_index};
  }
  p.rows = student.size(0);
  p.classes = student.size(1);
  p.threshold = s.threshold.value_or(LossOptions::kDefaultThreshold);
  p.group_size = s.group_size.value_or(-1);
  p.selection_temperature = s.group_temperature.value_or(0);
  p.by_both = s.threshold && s.group_size;
  p.by_student = s.rank_by == "student";
  p.weights = weights_of(s);
  p.reduction = s.reduction == "none"   ? Reduction::kNone
                : s.reduction == "mean" ? Reduction::kMean
                                        : Reduction::kSum;
  return p;
}

/// Of a result that is [0] where it is not asked for.
inline void* data_or_null(const at::Tensor& t) {
  return t.numel() > 0 ? t.mutable_data_ptr() : nullptr;
}

/// What a call writes; without rows, what no kernel will.
inline Results results_of(std::int64_t rows, const at::Tensor& loss, const at::Tensor& grad_scale,
                          const at::Tensor& gradient) {
  if (rows == 0) {
    loss.zero_();
    grad_scale.fill_(1);
  }
  return {loss.mutable_data_ptr(), grad_scale.mutable_data_ptr(), data_or_null(gradient)};
}

inline Device this_device() {
  Device device;
  C10_CUDA_CHECK(query_device(c10::cuda::current_device(), &device));
  return device;
}

}  // namespace gkd::cuda
