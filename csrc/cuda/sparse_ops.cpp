// The CUDA backend of sparse_loss: converts tensors to a cuda::SparseCall and launches on the
// current stream of their device. A device cannot throw: a row whose group cannot be is NaN.
#include <torch/library.h>

#include "cuda/sparse/launch.h"
#include "cuda/tensors.h"
#include "sparse_shard.h"

namespace gkd {
namespace {

/// The tensors of a call, which keep what the kernels read alive.
struct SparseTensors {
  const TeacherGroup group;  ///< contiguous, but for `rest`
  const cuda::TensorCall tensors;
  cuda::SparseCall call;

  SparseTensors(const CallOptions& s, Ref student, const TeacherGroup& given,
                const OptionalTensor& target, bool is_training)
      : group{given.indptr.contiguous(), given.indices.contiguous(), given.logits.contiguous(),
              given.rest},
        tensors(student, group.logits.unsqueeze(0), target, s, is_training),
        call{tensors, {}} {
    call.p.teacher.row_stride = 0;  // one row, whose places the indices' are
    call.p.selection.by_student =
        true;  // the kernels read the student's logits as the ranking ones
    call.group = {group.indptr.const_data_ptr<std::int64_t>(),
                  group.indices.const_data_ptr<std::int32_t>(),
                  group.indices.numel(),
                  group.rest.const_data_ptr(),
                  group.rest.stride(0),
                  group.rest.scalar_type() == at::kDouble};
  }
};

void sparse_cuda(const CallOptions& s, Ref student, const GroupPart& given,
                 const OptionalTensor& target, const ForwardTensors& made) {
  const auto& [loss, gradient, grad_scale, cross_entropy, distillation] = made;
  const std::int64_t rows = student.size(0);
  const cuda::Results results =
      cuda::results_of(rows, loss, grad_scale, gradient, cross_entropy, distillation);
  if (rows == 0) return;
  const bool need_parts = cross_entropy.sizes() == loss.sizes();
  SparseTensors of(s, student, given, target, need_parts || !is_plain(s.training));
  of.call.group.is_part = given.first_row.has_value();
  const at::Tensor workspace =
      of.tensors.workspace(cuda::sparse_workspace_bytes(of.call.p, of.call.device));
  C10_CUDA_CHECK(cuda::sparse_forward(of.call, results, workspace.mutable_data_ptr()));
}

/// run(call, workspace) of a shard's stage, where it has rows.
template <class Run>
void launch_stage(const SparseShardCall& c, Run run) {
  if (c.rows() == 0) return;
  SparseTensors of(c.options, c.student, c.group, c.target, /*is_training=*/true);
  of.call.p.all_classes = c.num_classes;
  of.call.p.class_start = c.class_start;
  of.call.group.is_part = true;  // of any chunk of rows, whose ends are not compared
  const at::Tensor workspace = of.tensors.workspace(cuda::sparse_shard_workspace_bytes(of.call));
  C10_CUDA_CHECK(run(of.call, workspace.mutable_data_ptr()));
}

void shard_moments(const SparseShardCall& c, Ref out) {
  launch_stage(c, [&](const cuda::SparseCall& call, void* workspace) {
    return cuda::sparse_shard_moments(call, out.mutable_data_ptr<double>(), workspace);
  });
}

void shard_gradient(const SparseShardCall& c, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  launch_stage(c, [&](const cuda::SparseCall& call, void* workspace) {
    return cuda::sparse_shard_gradient(call, moments.const_data_ptr<double>(), moments.size(0),
                                       cuda::data_or_null(std::get<0>(out)),
                                       std::get<1>(out).mutable_data_ptr<double>(), workspace);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  register_sparse<sparse_cuda>(m);
  register_sparse_stages<shard_moments, shard_gradient>(m);
}

}  // namespace gkd
