// The CUDA backend: converts tensors to a cuda::Call and launches on the current stream of their
// device. Scratch comes from torch's allocator; nothing synchronises.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "cuda/tensors.h"

namespace gkd {
namespace {

/// The kernels count a row's classes by bin in int32.
void check_row_length(const char* name, std::int64_t classes) {
  constexpr std::int64_t kMaxClasses = std::numeric_limits<std::int32_t>::max();
  TORCH_CHECK_VALUE(classes <= kMaxClasses, name, ": on CUDA a row has at most ", kMaxClasses,
                    " classes, got ", classes);
}

ForwardTensors forward_cuda(const LossOptions& s, Ref student, Ref teacher,
                            const OptionalTensor& target, bool need_grad) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  check_row_length("gkd::loss", classes);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor loss = s.reduction == "none" ? at::empty({rows}, options) : at::empty({}, options);
  at::Tensor grad_scale = at::empty({}, options);
  at::Tensor gradient =
      need_grad ? at::empty({rows, classes}, student.options()) : at::empty({0}, student.options());
  if (rows == 0) return {loss.zero_(), gradient, grad_scale.fill_(1)};
  const cuda::TensorCall c(student, teacher, target, s);
  const at::Tensor workspace = c.workspace(cuda::workspace_bytes(c.p, c.device));
  const cuda::Results results{loss.mutable_data_ptr(), grad_scale.mutable_data_ptr(),
                              need_grad ? gradient.mutable_data_ptr() : nullptr};
  C10_CUDA_CHECK(cuda::forward(c, results, workspace.mutable_data_ptr()));
  return {loss, gradient, grad_scale};
}

GroupTensors group_cuda(const LossOptions& s, Ref student, Ref teacher,
                        const OptionalTensor& target, bool return_mask) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  check_row_length("gkd::group", classes);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor size = at::empty({rows}, options.dtype(at::kLong));
  at::Tensor columns[6];  // one tensor each: an operator's outputs must not alias
  for (at::Tensor& column : columns) column = at::empty({rows}, options);
  at::Tensor mask = return_mask ? at::empty({rows, classes}, options.dtype(at::kBool))
                                : at::empty({0}, options.dtype(at::kBool));
  if (rows > 0) {
    const cuda::TensorCall c(student, teacher, target, s);
    const at::Tensor workspace = c.workspace(cuda::workspace_bytes(c.p, c.device));
    const cuda::GroupColumns out{size.mutable_data_ptr<std::int64_t>(),
                                 columns[0].mutable_data_ptr(),
                                 columns[1].mutable_data_ptr(),
                                 columns[2].mutable_data_ptr(),
                                 columns[3].mutable_data_ptr(),
                                 columns[4].mutable_data_ptr(),
                                 columns[5].mutable_data_ptr(),
                                 return_mask ? mask.mutable_data_ptr<bool>() : nullptr};
    C10_CUDA_CHECK(cuda::group(c, out, workspace.mutable_data_ptr()));
  }
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

/// `out` may be `gradient` itself.
void scale_into(Ref gradient, Ref grad_output, Ref grad_scale, Ref out) {
  const c10::cuda::CUDAGuard guard(gradient.device());
  const at::Tensor factors = grad_output.to(grad_scale.scalar_type()).resolve_neg();
  if (out.numel() == 0) return;
  cuda::ScaleCall c;
  c.gradient = gradient.const_data_ptr();
  c.dtype = dtype_of(gradient);
  c.rows = gradient.size(0);
  c.classes = gradient.size(1);
  c.grad_output = factors.const_data_ptr();
  c.grad_output_stride = factors.dim() == 0 ? 0 : factors.stride(0);
  c.grad_scale = grad_scale.const_data_ptr();
  c.factors_are_double = grad_scale.scalar_type() == at::kDouble;
  c.out = out.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::scale(c, cuda::this_device(), at::cuda::getCurrentCUDAStream()));
}

at::Tensor scale_cuda(Ref gradient, Ref grad_output, Ref grad_scale) {
  at::Tensor out = at::empty(gradient.sizes(), gradient.options());
  scale_into(gradient.contiguous(), grad_output, grad_scale, out);
  return out;
}

void scale_cuda_(Ref gradient, Ref grad_output, Ref grad_scale) {
  scale_into(gradient, grad_output, grad_scale, gradient);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  register_ops<forward_cuda, group_cuda, scale_cuda>(m);
  m.impl("_scale_", &scale_cuda_);
}

}  // namespace gkd
