// gkd::sharded_sparse_loss: two stages of the local part with a collective after each.
//
// A grouped teacher needs no search for a cut. What the teacher has outside a row's group is one
// number that all ranks know, so it joins the gathered moments once, as if a further rank had sent
// it.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "ranks.h"
#include "sparse_shard.h"

namespace gkd {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

void check_call(bool is_training, const SparseShardCall& c) {
  const char* name = sparse_shard_name(is_training);
  check_sparse(name, c.student, c.group, c.target, c.options, /*is_shard=*/true);
  check_shard_range(name, c.student.sym_size(-1), c.class_start, c.num_classes);
}

/// The moments of the teacher's classes outside the groups, double [1, B, width]: those of one
/// class that the student gives no mass, with a sum of 1 relative to the shift T rest.
at::Tensor rest_moments(const SparseShardCall& c) {
  const at::Tensor rest = c.group.rest.to(at::kDouble);
  const at::Tensor zero = at::zeros_like(rest), none = at::full_like(rest, -kInf);
  const at::Tensor some = rest.isneginf().logical_not();
  std::vector<at::Tensor> fields(c.moments_width(), zero);
  fields[0] = fields[1] = fields[7] = none;
  fields[6] = rest * weights_of(c.options).exponent_temperature();
  fields[8] = fields[11] = some.to(at::kDouble);
  fields[10] = -fields[8];
  fields[kMsgInvalid] = at::logical_or(rest.isnan(), rest.isposinf()).to(at::kDouble);
  if (c.has_cross_entropy()) fields[kMsgOthers] = fields[kMsgTarget] = none;
  return at::stack(fields, 1).unsqueeze(0);
}

ForwardTensors forward(const SparseShardCall& given, bool need_grad, bool need_parts,
                       const Ranks& ranks) {
  check_call(need_parts, given);
  const at::Tensor student = by_row(given.student);
  const OptionalTensor target = by_row(given.target);
  CallOptions options = given.options;
  options.training.margins = by_row(options.training.margins);
  const SparseShardCall c{options, student,           given.group,
                          target,  given.class_start, given.num_classes};
  const auto found = ranks.gather(call_stage<at::Tensor>("gkd::_shard_sparse_moments", c));
  const at::Tensor moments = at::cat({found, rest_moments(c)});
  const auto [gradient, kl] =
      call_stage<TensorPair>("gkd::_shard_sparse_gradient", c, moments, need_grad);
  // The last stage reads no logits, only their dtypes.
  const at::Tensor teacher =
      at::empty({1, 1}, c.group.logits.options()).expand_symint(student.sym_sizes());
  const ShardCall dense{options, student, teacher, target, c.class_start, c.num_classes};
  // As many ranks as there are moments: the rest has no KL.
  const at::Tensor kls = at::cat({ranks.gather(kl), at::zeros_like(kl).unsqueeze(0)});
  const auto made = call_stage<LossTensors>("gkd::_shard_loss", dense, moments, kls);
  return shaped_as(given.student, options, gradient, need_grad, made);
}

/// forward() as a function of the student; the group is a constant.
ForwardTensors of_student(const SparseShardCall& c, bool need_parts, const Ranks& ranks) {
  const char* name = sparse_shard_name(need_parts);
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && c.group.rest.requires_grad()), name,
                    ": teacher_group.rest must not require grad");
  return with_autograd(
      name, c.student, c.group.logits, "teacher_group.logits",
      [&](bool need_grad) { return forward(c, need_grad, need_parts, ranks); },
      "gkd.reference.sparse_loss");
}

/// Without a gradient: no [B, C_r] buffer.
at::Tensor no_grad(const SparseShardCall& c, std::int64_t world_size, c10::string_view group_name) {
  return std::get<0>(
      forward(c, /*need_grad=*/false, /*need_parts=*/false, {world_size, std::string(group_name)}));
}

at::Tensor autograd(const SparseShardCall& c, std::int64_t world_size,
                    c10::string_view group_name) {
  return std::get<0>(of_student(c, /*need_parts=*/false, {world_size, std::string(group_name)}));
}

TensorTriple training_no_grad(const SparseShardCall& c, std::int64_t world_size,
                              c10::string_view group_name) {
  return parts_of(
      forward(c, /*need_grad=*/false, /*need_parts=*/true, {world_size, std::string(group_name)}));
}

TensorTriple training_autograd(const SparseShardCall& c, std::int64_t world_size,
                               c10::string_view group_name) {
  const TrainingOptions& o = c.options.training;
  check_factors_are_constant(sparse_shard_name(true), o.margins, o.distillation_factor);
  return parts_of(of_student(c, /*need_parts=*/true, {world_size, std::string(group_name)}));
}

/// gkd::_sparse_forward of a shard; no autograd.
ForwardTensors sharded_forward(const SparseShardCall& c, std::int64_t world_size,
                               c10::string_view group_name, bool need_grad, bool need_parts) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward(c, need_grad, need_parts, {world_size, std::string(group_name)});
}

}  // namespace

void check_sparse_shard(const SparseShardCall& c) { check_call(c.has_cross_entropy(), c); }

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("sharded_sparse_loss", sparse_shard_loss_op<no_grad>);
  m.impl("sharded_training_sparse_loss", sparse_shard_op<training_no_grad>);
  m.impl("_check_sparse_shard", sparse_shard_op<check_sparse_shard>);
}
TORCH_LIBRARY_IMPL(gkd, CompositeImplicitAutograd, m) {
  m.impl("_sharded_sparse_forward", sparse_shard_op<sharded_forward>);
}
TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("sharded_sparse_loss", sparse_shard_loss_op<autograd>);
  m.impl("sharded_training_sparse_loss", sparse_shard_op<training_autograd>);
}
TORCH_LIBRARY_IMPL(gkd, Meta, m) { register_sparse_stages<>(m); }

at::Tensor sharded_sparse_loss(const at::Tensor& student, const TeacherGroup& group,
                               const OptionalTensor& target, const Shard& shard,
                               const LossOptions& o) {
  return call_op<at::Tensor>(sparse_shard_name(false), o, student, group.indptr, group.indices,
                             group.logits, group.rest, target, shard.class_start, shard.num_classes,
                             shard.world_size, c10::string_view(shard.group_name));
}

TrainingLoss sharded_training_sparse_loss(const at::Tensor& student, const TeacherGroup& group,
                                          const at::Tensor& target, const Shard& shard,
                                          const TrainingOptions& training, const LossOptions& o) {
  const CallOptions options{o, training};
  const OptionalTensor targets = target;
  const SparseShardCall c{options, student, group, targets, shard.class_start, shard.num_classes};
  const auto [total, cross_entropy, distillation] = call_stage<TensorTriple>(
      sparse_shard_name(true), c, shard.world_size, c10::string_view(shard.group_name));
  return {total, cross_entropy, distillation};
}

}  // namespace gkd
