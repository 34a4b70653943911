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

/// launch(call, workspace) on rows, if there are any.
template <class Launch>
void launch(const char* name, const CallOptions& s, Ref student, Ref teacher,
            const OptionalTensor& target, bool is_training, Launch launch) {
  check_row_length(name, student.size(1));
  if (student.size(0) == 0) return;
  const cuda::TensorCall c(student, teacher, target, s, is_training);
  const at::Tensor workspace = c.workspace(cuda::workspace_bytes(c.p, c.device));
  C10_CUDA_CHECK(launch(c, workspace.mutable_data_ptr()));
}

void forward_cuda(const CallOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                  const ForwardTensors& made) {
  const auto& [loss, gradient, grad_scale, cross_entropy, distillation] = made;
  const cuda::Results results =
      cuda::results_of(student.size(0), loss, grad_scale, gradient, cross_entropy, distillation);
  const bool need_parts = cross_entropy.sizes() == loss.sizes();
  launch(need_parts ? kTrainingLoss : kLoss, s, student, teacher, target,
         need_parts || !is_plain(s.training), [&](const cuda::Call& c, void* workspace) {
           return cuda::forward(c, results, workspace);
         });
}

void group_cuda(const CallOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                const GroupTensors& made) {
  const auto& [size, p, q, cut, primary, binary, secondary, mask] = made;
  const cuda::GroupColumns out{size.mutable_data_ptr<std::int64_t>(),
                               p.mutable_data_ptr(),
                               q.mutable_data_ptr(),
                               cut.mutable_data_ptr(),
                               primary.mutable_data_ptr(),
                               binary.mutable_data_ptr(),
                               secondary.mutable_data_ptr(),
                               static_cast<bool*>(cuda::data_or_null(mask))};
  launch(kGroup, s, student, teacher, target, /*is_training=*/false,
         [&](const cuda::Call& c, void* workspace) { return cuda::group(c, out, workspace); });
}

void scale_cuda(Ref gradient, Ref out, Ref grad_output, Ref grad_scale) {
  const c10::cuda::CUDAGuard guard(gradient.device());
  const at::Tensor factors = grad_output.to(grad_scale.scalar_type()).resolve_neg();
  if (out.numel() == 0) return;
  cuda::ScaleCall c;
  c.gradient = gradient.const_data_ptr();
  c.dtype = dtype_of(gradient);
  c.classes = gradient.size(-1);
  c.rows = gradient.numel() / c.classes;
  c.grad_output = factors.const_data_ptr();
  c.grad_output_stride = factors.dim() == 0 ? 0 : factors.stride(0);
  c.grad_scale = grad_scale.const_data_ptr();
  c.factors_are_double = grad_scale.scalar_type() == at::kDouble;
  c.out = out.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::scale(c, cuda::this_device(), at::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) { register_ops<forward_cuda, group_cuda, scale_cuda>(m); }

}  // namespace gkd
