// The CUDA backend of sparse_loss: converts tensors to a cuda::SparseCall and launches on the
// current stream of their device. A device cannot throw: a row whose group cannot be is NaN.
#include <torch/library.h>

#include "cuda/sparse/launch.h"
#include "cuda/tensors.h"
#include "sparse.h"

namespace gkd {
namespace {

void sparse_cuda(const CallOptions& s, Ref student, const TeacherGroup& given,
                 const OptionalTensor& target, const ForwardTensors& made) {
  const auto& [loss, gradient, grad_scale, cross_entropy, distillation] = made;
  const std::int64_t rows = student.size(0);
  const cuda::Results results =
      cuda::results_of(rows, loss, grad_scale, gradient, cross_entropy, distillation);
  if (rows == 0) return;
  const TeacherGroup group{given.indptr.contiguous(), given.indices.contiguous(),
                           given.logits.contiguous(), given.rest};
  const bool need_parts = cross_entropy.sizes() == loss.sizes();
  const cuda::TensorCall tensors(student, group.logits.unsqueeze(0), target, s,
                                 need_parts || !is_plain(s.training));
  cuda::SparseCall c{tensors, {}};
  c.p.teacher.row_stride = 0;       // one row, whose places the indices' are
  c.p.selection.by_student = true;  // the kernels read the student's logits as the ranking ones
  c.group = {group.indptr.const_data_ptr<std::int64_t>(),
             group.indices.const_data_ptr<std::int32_t>(),
             group.indices.numel(),
             group.rest.const_data_ptr(),
             group.rest.stride(0),
             group.rest.scalar_type() == at::kDouble};
  const at::Tensor workspace = tensors.workspace(cuda::sparse_workspace_bytes(c.p, c.device));
  C10_CUDA_CHECK(cuda::sparse_forward(c, results, workspace.mutable_data_ptr()));
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) { register_sparse<sparse_cuda>(m); }

}  // namespace gkd
