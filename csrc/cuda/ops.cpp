// CUDA backend: torch's tensors become the kernels' problem, on the current stream of the tensors'
// device. Scratch comes from torch's allocator; nothing synchronises.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "cuda/tensors.h"

namespace gkd {
namespace {

/// The kernels count a row's classes by bin in int32.
void check_row_length(const char* name, std::int64_t classes) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  TORCH_CHECK_VALUE(classes <= kMost, name, ": on CUDA a row has at most ", kMost, " classes, got ",
                    classes);
}

cuda::Method method_of(const Settings& s) {
  return s.method == "sort" ? cuda::Method::kSort : cuda::Method::kSelect;
}

at::Tensor workspace_for(const cuda::Problem& p, const cuda::Device& device, cuda::Method method,
                         const at::Tensor& like) {
  const auto bytes = static_cast<std::int64_t>(cuda::workspace_bytes(p, device, method));
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

ForwardTensors forward_cuda(const at::Tensor& student, const at::Tensor& teacher,
                            const OptionalTensor& target, const Settings& s,
                            std::string_view reduction, bool need_grad) {
  const c10::cuda::CUDAGuard guard(student.device());
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const std::int64_t rows = student.size(0), classes = student.size(1);
  check_row_length("gkd::loss", classes);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor loss = reduction == "none" ? at::empty({rows}, options) : at::empty({}, options);
  at::Tensor weight = at::empty({}, options);
  at::Tensor gradient =
      need_grad ? at::empty({rows, classes}, student.options()) : at::empty({0}, student.options());
  if (rows == 0) return {loss.zero_(), gradient, weight.fill_(1)};
  cuda::Problem p = cuda::problem_of(su, te, target, s);
  p.reduction = cuda::reduction_of(reduction);
  const cuda::Device device = cuda::this_device();
  const cuda::Method method = method_of(s);
  const at::Tensor workspace = workspace_for(p, device, method, student);
  const cuda::Results results{loss.mutable_data_ptr(), weight.mutable_data_ptr(),
                              need_grad ? gradient.mutable_data_ptr() : nullptr};
  C10_CUDA_CHECK(cuda::forward(p, results, device, method, workspace.mutable_data_ptr(),
                               at::cuda::getCurrentCUDAStream()));
  return {loss, gradient, weight};
}

GroupTensors group_cuda(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& target, const Settings& s, bool return_mask) {
  const c10::cuda::CUDAGuard guard(student.device());
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const std::int64_t rows = student.size(0), classes = student.size(1);
  check_row_length("gkd::group", classes);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor size = at::empty({rows}, options.dtype(at::kLong));
  at::Tensor columns[6];  // apart, since an operator's outputs must not alias
  for (at::Tensor& column : columns) column = at::empty({rows}, options);
  at::Tensor mask = return_mask ? at::empty({rows, classes}, options.dtype(at::kBool))
                                : at::empty({0}, options.dtype(at::kBool));
  if (rows > 0) {
    const cuda::Problem p = cuda::problem_of(su, te, target, s);
    const cuda::Device device = cuda::this_device();
    const cuda::Method method = method_of(s);
    const at::Tensor workspace = workspace_for(p, device, method, student);
    const cuda::GroupColumns to{size.mutable_data_ptr<std::int64_t>(),
                                columns[0].mutable_data_ptr(),
                                columns[1].mutable_data_ptr(),
                                columns[2].mutable_data_ptr(),
                                columns[3].mutable_data_ptr(),
                                columns[4].mutable_data_ptr(),
                                columns[5].mutable_data_ptr(),
                                return_mask ? mask.mutable_data_ptr<bool>() : nullptr};
    C10_CUDA_CHECK(cuda::group(p, to, device, method, workspace.mutable_data_ptr(),
                               at::cuda::getCurrentCUDAStream()));
  }
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

/// `to` may be `gradient` itself: each class is read and written by one thread.
void scale_into(const at::Tensor& gradient, const at::Tensor& grad_output, const at::Tensor& weight,
                double factor, const at::Tensor& to) {
  const c10::cuda::CUDAGuard guard(gradient.device());
  const at::Tensor scales = grad_output.to(weight.scalar_type()).resolve_neg();
  if (to.numel() == 0) return;
  C10_CUDA_CHECK(cuda::scale(gradient.const_data_ptr(), dtype_of(gradient), scales.const_data_ptr(),
                             scales.dim() == 0 ? 0 : scales.stride(0), weight.const_data_ptr(),
                             weight.scalar_type() == at::kDouble, factor, gradient.size(0),
                             gradient.size(1), to.mutable_data_ptr(), cuda::this_device(),
                             at::cuda::getCurrentCUDAStream()));
}

at::Tensor scale_cuda(const at::Tensor& gradient, const at::Tensor& grad_output,
                      const at::Tensor& weight, double factor) {
  const at::Tensor from = gradient.contiguous();
  at::Tensor out = at::empty(gradient.sizes(), gradient.options());
  scale_into(from, grad_output, weight, factor, out);
  return out;
}

void scale_cuda_(const at::Tensor& gradient, const at::Tensor& grad_output,
                 const at::Tensor& weight, double factor) {
  TORCH_INTERNAL_ASSERT(gradient.is_contiguous(), "the forward's gradient is contiguous");
  scale_into(gradient, grad_output, weight, factor, gradient);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  m.impl("_forward", &checked_forward<forward_cuda>);
  m.impl("_scale", &scale_cuda);
  m.impl("_scale_", &scale_cuda_);
  m.impl("group", &checked_group<group_cuda>);
}

}  // namespace gkd
