// gkd::sharded_loss: stages of the local part (shard_call.h) with collectives between them.
//
// The number of collectives depends on dtype and settings alone: docs/performance.md counts them.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "gkd/gkd.h"
#include "math/radix_select.h"
#include "ranks.h"
#include "shard_call.h"

namespace gkd {
namespace {

bool compute_in_double(const ShardCall& c) {
  return compute_dtype(c.student, c.teacher) == at::kDouble;
}

/// Radix passes that any search over this call's ranking logits needs.
int num_passes(const ShardCall& c) {
  const auto own = dtype_of(c.options.rank_by == "student" ? c.student : c.teacher);
  const auto wide = compute_in_double(c) ? Dtype::kDouble : Dtype::kFloat;
  const auto dtype = c.has_wide_keys() ? wide : own;
  return compute_in_double(c) ? Keys<double>(dtype).num_passes() : Keys<float>(dtype).num_passes();
}

/// Of the whole row.
std::optional<double> constant_cut_of(const ShardCall& c) {
  const Selection selection = selection_of(c.options);
  if (compute_in_double(c)) return constant_cut<double>(selection, c.num_classes);
  return constant_cut<float>(selection, c.num_classes);
}

/// The cut of every row, double [B]: the whole row's, the same on all ranks.
at::Tensor find_cut(const ShardCall& c, const Ranks& ranks) {
  if (c.options.threshold && c.options.group_size) {
    CallOptions by_mass = c.options, by_size = c.options;
    by_mass.group_size.reset();
    by_size.threshold.reset();
    const auto cut = [&](const CallOptions& o) {
      return find_cut({o, c.student, c.teacher, c.target, c.class_start, c.num_classes}, ranks);
    };
    return at::maximum(cut(by_mass), cut(by_size));
  }
  const auto options = c.student.options().dtype(at::kDouble);
  if (const auto cut = constant_cut_of(c)) {
    return at::full_symint({c.student.sym_size(0)}, *cut, options);
  }
  const auto extremes = ranks.reduce(call_stage<at::Tensor>("gkd::_shard_extremes", c), "max");
  const auto counts =
      ranks.reduce(call_stage<at::Tensor>("gkd::_shard_counts", c, extremes), "sum");
  at::Tensor search = at::empty({0}, options.dtype(at::kLong)), cut;
  for (int pass = 0; pass < num_passes(c); ++pass) {
    const auto histogram = ranks.reduce(
        call_stage<at::Tensor>("gkd::_shard_histogram", c, extremes, counts, search), "sum");
    std::tie(search, cut) =
        call_stage<TensorPair>("gkd::_shard_refine", c, extremes, histogram, search);
  }
  return cut;
}

constexpr const char *kName = "gkd::sharded_loss", *kTraining = "gkd::sharded_training_loss";

void check_call(const char* name, const ShardCall& c) {
  check_inputs(name, c.student, c.teacher, c.target, c.options, /*is_shard=*/true);
  check_training(name, c.student, c.target, c.options);
  check_shard_range(name, c.student.sym_size(-1), c.class_start, c.num_classes);
}
void check(const ShardCall& c) { check_call(kName, c); }

ForwardTensors forward(const ShardCall& given, bool need_grad, bool need_parts,
                       const Ranks& ranks) {
  check_call(need_parts ? kTraining : kName, given);
  const at::Tensor student = by_row(given.student), teacher = by_row(given.teacher);
  const OptionalTensor target = by_row(given.target);
  CallOptions options = given.options;
  options.training.margins = by_row(options.training.margins);
  const ShardCall c{options, student, teacher, target, given.class_start, given.num_classes};
  const at::Tensor cut = find_cut(c, ranks);
  const auto moments = ranks.gather(call_stage<at::Tensor>("gkd::_shard_moments", c, cut));
  const auto [gradient, kl] =
      call_stage<TensorPair>("gkd::_shard_gradient", c, cut, moments, need_grad);
  const auto [loss, grad_scale, cross_entropy, distillation] =
      call_stage<LossTensors>("gkd::_shard_loss", c, moments, ranks.gather(kl));
  return shaped_as(given.student, options, gradient, need_grad,
                   {loss, grad_scale, cross_entropy, distillation});
}

/// Without a gradient: no [B, C_r] buffer.
at::Tensor no_grad(const ShardCall& c, std::int64_t world_size, c10::string_view group_name) {
  return std::get<0>(
      forward(c, /*need_grad=*/false, /*need_parts=*/false, {world_size, std::string(group_name)}));
}

at::Tensor autograd(const ShardCall& c, std::int64_t world_size, c10::string_view group_name) {
  return std::get<0>(
      with_autograd(kName, c.student, c.teacher, "teacher_shard", [&](bool need_grad) {
        return forward(c, need_grad, false, {world_size, std::string(group_name)});
      }));
}

TensorTriple training_no_grad(const ShardCall& c, std::int64_t world_size,
                              c10::string_view group_name) {
  return parts_of(
      forward(c, /*need_grad=*/false, /*need_parts=*/true, {world_size, std::string(group_name)}));
}

TensorTriple training_autograd(const ShardCall& c, std::int64_t world_size,
                               c10::string_view group_name) {
  const TrainingOptions& o = c.options.training;
  check_factors_are_constant(kTraining, o.margins, o.distillation_factor);
  return parts_of(
      with_autograd(kTraining, c.student, c.teacher, "teacher_shard", [&](bool need_grad) {
        return forward(c, need_grad, true, {world_size, std::string(group_name)});
      }));
}

/// gkd::_forward of a shard; no autograd.
ForwardTensors sharded_forward(const ShardCall& c, std::int64_t world_size,
                               c10::string_view group_name, bool need_grad, bool need_parts) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward(c, need_grad, need_parts, {world_size, std::string(group_name)});
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("sharded_loss", shard_loss_op<no_grad>);
  m.impl("sharded_training_loss", shard_op<training_no_grad>);
  m.impl("_check_shard", shard_op<check>);
}
TORCH_LIBRARY_IMPL(gkd, CompositeImplicitAutograd, m) {
  m.impl("_sharded_forward", shard_op<sharded_forward>);
}
TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("sharded_loss", shard_loss_op<autograd>);
  m.impl("sharded_training_loss", shard_op<training_autograd>);
}

at::Tensor sharded_loss(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& target, const Shard& shard, const LossOptions& o) {
  return call_op<at::Tensor>(kName, o, student, teacher, target, shard.class_start,
                             shard.num_classes, shard.world_size,
                             c10::string_view(shard.group_name));
}

TrainingLoss sharded_training_loss(const at::Tensor& student, const at::Tensor& teacher,
                                   const at::Tensor& target, const Shard& shard,
                                   const TrainingOptions& training, const LossOptions& o) {
  const CallOptions options{o, training};
  const OptionalTensor targets = target;
  const auto [total, cross_entropy, distillation] = call_stage<TensorTriple>(
      kTraining, {options, student, teacher, targets, shard.class_start, shard.num_classes},
      shard.world_size, c10::string_view(shard.group_name));
  return {total, cross_entropy, distillation};
}

}  // namespace gkd
