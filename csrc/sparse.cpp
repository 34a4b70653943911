// sparse_loss and training_sparse_loss in front of every backend: checks, autograd, the public C++
// functions.
#include "sparse.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

namespace gkd {

void check_sparse(const char* name, Ref student, const TeacherGroup& group,
                  const OptionalTensor& target, const CallOptions& s, bool is_shard) {
  check_inputs(name, student, student, target, s, is_shard);
  TORCH_CHECK_VALUE(s.secondary_weight == 0, name, ": secondary_weight must be 0, got ",
                    s.secondary_weight,
                    ": a teacher group has not the logits that Secondary-KD compares");
  TORCH_CHECK_VALUE(s.rank_by == "teacher", name,
                    ": rank_by must be teacher: the group was chosen without the student");
  TORCH_CHECK_VALUE(!s.threshold && !s.group_size && !s.group_temperature, name,
                    ": threshold, group_size and group_temperature are settings of "
                    "gkd.teacher_group, which chose the group already");
  check_training(name, student, target, s);
  TORCH_CHECK_VALUE(!s.training.distill_margin, name,
                    ": distill_margin must be false: the group was chosen without the margin");
  const auto check = [&](const char* which, Ref t, bool has_dtype, const char* dtypes) {
    TORCH_CHECK_TYPE(has_dtype, name, ": teacher_group.", which, " must be ", dtypes, ", got ",
                     c10::toString(t.scalar_type()));
    TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, name, ": teacher_group.", which,
                                " must be a dense (strided) tensor, got ", t.layout());
    TORCH_CHECK_VALUE(t.dim() == 1, name, ": teacher_group.", which,
                      " must have one dimension, got ", t.sym_sizes());
    TORCH_CHECK(t.device() == student.device(), name, ": all tensors must be on one device, got ",
                student.device(), " and ", t.device());
  };
  const auto dtype = group.logits.scalar_type(), rest = group.rest.scalar_type();
  check("indptr", group.indptr, group.indptr.scalar_type() == at::kLong, "int64");
  check("indices", group.indices, group.indices.scalar_type() == at::kInt, "int32");
  check("logits", group.logits,
        dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble,
        "float16, bfloat16, float32 or float64");
  check("rest", group.rest, rest == at::kFloat || rest == at::kDouble, "float32 or float64");
  const auto leading = student.sym_sizes().slice(0, student.dim() - 1);
  const c10::SymInt rows = c10::multiply_integers(leading);
  TORCH_CHECK_VALUE(group.indptr.sym_size(0) == rows + 1, name, ": teacher_group.indptr must be [",
                    rows + 1, "] for student_logits of ", rows, " rows, got ",
                    group.indptr.sym_sizes());
  TORCH_CHECK_VALUE(group.rest.sym_size(0) == rows, name, ": teacher_group.rest must be [", rows,
                    "], one per row, got ", group.rest.sym_sizes());
  TORCH_CHECK_VALUE(group.logits.sym_size(0) == group.indices.sym_size(0), name,
                    ": teacher_group.logits must be ", group.indices.sym_sizes(),
                    " as its indices, got ", group.logits.sym_sizes());
}

namespace {

ForwardTensors forward(const CallOptions& options, Ref student, const TeacherGroup& group,
                       const OptionalTensor& target, bool need_grad, bool need_parts,
                       const OptionalTensor& margins = {},
                       const OptionalTensor& distillation_factor = {}) {
  return call_op<ForwardTensors>("gkd::_sparse_forward", options, student, group.indptr,
                                 group.indices, group.logits, group.rest, target, need_grad,
                                 need_parts, std::optional<std::int64_t>(), margins,
                                 distillation_factor);
}

/// forward() as a function of the student; the group is a constant.
ForwardTensors of_student(bool is_training, Ref student, const TeacherGroup& group,
                          const std::function<ForwardTensors(bool need_grad)>& forward) {
  const char* name = sparse_name(is_training);
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && group.rest.requires_grad()), name,
                    ": teacher_group.rest must not require grad");
  return with_autograd(name, student, group.logits, "teacher_group.logits", forward,
                       "gkd.reference.sparse_loss");
}

/// Without a gradient: no [B, C] buffer.
at::Tensor sparse_no_grad(const LossOptions& options, Ref student, Ref indptr, Ref indices,
                          Ref logits, Ref rest, const OptionalTensor& target) {
  return std::get<0>(forward(CallOptions{options}, student, {indptr, indices, logits, rest}, target,
                             /*need_grad=*/false, /*need_parts=*/false));
}

at::Tensor sparse_autograd(const LossOptions& options, Ref student, Ref indptr, Ref indices,
                           Ref logits, Ref rest, const OptionalTensor& target) {
  const TeacherGroup group{indptr, indices, logits, rest};
  return std::get<0>(of_student(false, student, group, [&](bool need_grad) {
    return forward(CallOptions{options}, student, group, target, need_grad, false);
  }));
}

TensorTriple training_no_grad(const CallOptions& options, Ref student, Ref indptr, Ref indices,
                              Ref logits, Ref rest, Ref target, const OptionalTensor& margins,
                              const OptionalTensor& distillation_factor) {
  return parts_of(forward(options, student, {indptr, indices, logits, rest}, target,
                          /*need_grad=*/false, /*need_parts=*/true, margins, distillation_factor));
}

TensorTriple training_autograd(const CallOptions& options, Ref student, Ref indptr, Ref indices,
                               Ref logits, Ref rest, Ref target, const OptionalTensor& margins,
                               const OptionalTensor& distillation_factor) {
  check_factors_are_constant(sparse_name(true), margins, distillation_factor);
  const TeacherGroup group{indptr, indices, logits, rest};
  return parts_of(of_student(true, student, group, [&](bool need_grad) {
    return forward(options, student, group, target, need_grad, true, margins, distillation_factor);
  }));
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("sparse_loss", &SettingsOp<sparse_no_grad>::call);
  m.impl("training_sparse_loss", &SettingsOp<training_no_grad>::call);
}
TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("sparse_loss", &SettingsOp<sparse_autograd>::call);
  m.impl("training_sparse_loss", &SettingsOp<training_autograd>::call);
  m.impl("_sparse_forward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(gkd, Meta, m) { register_sparse<>(m); }

at::Tensor sparse_loss(const at::Tensor& student, const TeacherGroup& group,
                       const std::optional<at::Tensor>& target, const LossOptions& options) {
  return call_op<at::Tensor>("gkd::sparse_loss", options, student, group.indptr, group.indices,
                             group.logits, group.rest, target);
}

TrainingLoss training_sparse_loss(const at::Tensor& student, const TeacherGroup& group,
                                  const at::Tensor& target, const TrainingOptions& training,
                                  const LossOptions& options) {
  const auto [total, cross_entropy, distillation] =
      call_op<TensorTriple>("gkd::training_sparse_loss", CallOptions{options, training}, student,
                            group.indptr, group.indices, group.logits, group.rest, target,
                            training.margins, training.distillation_factor);
  return {total, cross_entropy, distillation};
}

}  // namespace gkd
