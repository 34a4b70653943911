// Converts tensors to a cuda::Call.
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

/// Of a result that is [0] where it is not asked for.
inline void* data_or_null(const at::Tensor& t) {
  return t.numel() > 0 ? t.mutable_data_ptr() : nullptr;
}

/// What a call writes; without rows, what no kernel will.
inline Results results_of(std::int64_t rows, const at::Tensor& loss, const at::Tensor& grad_scale,
                          const at::Tensor& gradient, const at::Tensor& cross_entropy,
                          const at::Tensor& distillation) {
  if (rows == 0) {
    for (const at::Tensor& t : {loss, cross_entropy, distillation}) t.zero_();
    grad_scale.fill_(1);
  }
  return {loss.mutable_data_ptr(), grad_scale.mutable_data_ptr(), data_or_null(gradient),
          data_or_null(cross_entropy), data_or_null(distillation)};
}

inline Device this_device() {
  Device device;
  C10_CUDA_CHECK(query_device(c10::cuda::current_device(), &device));
  return device;
}

/// Tensors of at least one row as a Call on their device, which is the current one while this
/// exists, and its current stream.
struct TensorCall : Call {
  c10::cuda::CUDAGuard guard;
  const at::TensorOptions options;
  at::Tensor margins, distillation_factor;  ///< what `head` points to

  /// is_training: the call has parts.
  TensorCall(Ref student, Ref teacher, const OptionalTensor& target, const CallOptions& s,
             bool is_training)
      : guard(student.device()), options(student.options().dtype(at::kByte)) {
    device = this_device();
    stream = at::cuda::getCurrentCUDAStream();
    p.student = matrix_of(student);
    p.teacher = matrix_of(teacher);
    if (target) {
      p.target = {target->const_data_ptr(), target->stride(0), target->scalar_type() == at::kInt,
                  s.ignore_index};
    }
    p.rows = student.size(0);
    p.classes = student.size(1);
    p.selection = selection_of(s);
    p.weights = weights_of(s);
    p.reduction = s.reduction == "none"   ? Reduction::kNone
                  : s.reduction == "mean" ? Reduction::kMean
                                          : Reduction::kSum;
    const TrainingOptions& t = s.training;
    const at::ScalarType dtype = compute_dtype(student, teacher);
    p.head.is_on = is_training;
    p.head.margin = t.margin;
    p.head.distill_margin = t.distill_margin && target;
    if (t.margins && p.rows > 0) {
      margins = t.margins->to(dtype).resolve_neg();
      p.head.margins = margins.const_data_ptr();
      p.head.margins_stride = margins.stride(0);
    }
    if (t.distillation_factor) {
      distillation_factor = t.distillation_factor->to(dtype).resolve_neg();
      p.head.distillation_factor = distillation_factor.const_data_ptr();
    }
    // Sorting takes the logits as they lie in memory; selection finds the same cut.
    if (p.head.distill_margin) p.selection.sort = false;
  }
  at::Tensor workspace(std::size_t bytes) const {
    return at::empty({static_cast<std::int64_t>(bytes)}, options);
  }
};

}  // namespace gkd::cuda
