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

inline Device this_device() {
  Device device;
  C10_CUDA_CHECK(query_device(c10::cuda::current_device(), &device));
  return device;
}

/// Tensors of at least one row as a Call on their device, which is the current one while this
/// exists, and its current stream.
struct TensorCall : Call {
  c10::cuda::CUDAGuard guard;
  at::Tensor student, teacher;  // the problem points into these

  TensorCall(Ref su, Ref te, const OptionalTensor& target, const LossOptions& s)
      : guard(su.device()), student(su.resolve_neg()), teacher(te.resolve_neg()) {
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
  }
  at::Tensor workspace(std::size_t bytes) const {
    return at::empty({static_cast<std::int64_t>(bytes)}, student.options().dtype(at::kByte));
  }
};

}  // namespace gkd::cuda
