// Operators over a class shard of a student whose teacher is grouped, as shard_call.h has them for
// two networks' logits. The messages are the same.
#pragma once

#include "shard_call.h"
#include "sparse.h"

namespace gkd {

/// One rank's part of a call: student [B, C_r], and of each row's group the classes of this shard,
/// which count from class_start, with the whole row's `rest`. Targets count from class 0 of the
/// whole row.
struct SparseShardCall {
  const CallOptions& options;
  const at::Tensor& student;
  const TeacherGroup& group;
  const OptionalTensor& target;
  std::int64_t class_start, num_classes;

  std::int64_t rows() const { return student.size(0); }
  bool has_cross_entropy() const { return options.training.cross_entropy_weight != 0; }
  int moments_width() const { return has_cross_entropy() ? kMsgWithHead : kMsgMoments; }
};

/// The operator, for messages.
inline const char* sparse_shard_name(bool is_training) {
  return is_training ? "gkd::sharded_training_sparse_loss" : "gkd::sharded_sparse_loss";
}

/// Throws unless shapes, dtypes, devices and settings are usable.
void check_sparse_shard(const SparseShardCall& c);

/// As ShardOp, under a schema of (student, indptr, indices, logits, rest, target, class_start,
/// num_classes, more..., margins, distillation_factor, *, settings...).
template <auto F>
struct SparseShardOp;
template <class R, class... More, R (*F)(const SparseShardCall&, More...)>
struct SparseShardOp<F> {
  static R call(const CallOptions& options, Ref student, Ref indptr, Ref indices, Ref logits,
                Ref rest, const OptionalTensor& target, std::int64_t class_start,
                std::int64_t num_classes, More... more, const OptionalTensor& margins,
                const OptionalTensor& distillation_factor) {
    const CallOptions all = with_factors(options, margins, distillation_factor);
    const TeacherGroup group{indptr, indices, logits, rest};
    return F({all, student, group, target, class_start, num_classes}, more...);
  }
  static R call_loss(const LossOptions& options, Ref student, Ref indptr, Ref indices, Ref logits,
                     Ref rest, const OptionalTensor& target, std::int64_t class_start,
                     std::int64_t num_classes, More... more) {
    const CallOptions all{options};
    const TeacherGroup group{indptr, indices, logits, rest};
    return F({all, student, group, target, class_start, num_classes}, more...);
  }
};
template <auto F>
constexpr auto sparse_shard_op = &SettingsOp<&SparseShardOp<F>::call>::call;
template <auto F>
constexpr auto sparse_shard_loss_op = &SettingsOp<&SparseShardOp<F>::call_loss>::call;

/// Calls the stage `name` with a SparseShardCall.
template <class R, class... More>
R call_stage(const char* name, const SparseShardCall& c, const More&... more) {
  return call_op<R>(name, c.options, c.student, c.group.indptr, c.group.indices, c.group.logits,
                    c.group.rest, c.target, c.class_start, c.num_classes, more...,
                    c.options.training.margins, c.options.training.distillation_factor);
}

/// What the stages return, not yet written.
namespace empty {
inline at::Tensor sparse_message(const SparseShardCall& c, std::int64_t width) {
  return at::empty_symint({c.student.sym_size(0), width}, c.student.options().dtype(at::kDouble));
}
inline at::Tensor sparse_moments(const SparseShardCall& c) {
  return sparse_message(c, c.moments_width());
}
inline TensorPair sparse_gradient(const SparseShardCall& c, Ref, bool need_grad) {
  return {empty_matrix(need_grad, c.student, c.student.options()), sparse_message(c, 2)};
}
}  // namespace empty

/// The stage that returns make(call, more...), written by a backend's fill(call, more..., results).
template <auto make, auto fill>
struct SparseStage;
template <class R, class... More, R (*make)(const SparseShardCall&, More...), auto fill>
struct SparseStage<make, fill> {
  static R run(const SparseShardCall& c, More... more) {
    R made = make(c, more...);
    if constexpr (!std::is_null_pointer_v<decltype(fill)>) {
      const at::Tensor student = c.student.resolve_neg();
      const TeacherGroup group{c.group.indptr, c.group.indices, c.group.logits.resolve_neg(),
                               c.group.rest.resolve_neg()};
      fill({c.options, student, group, c.target, c.class_start, c.num_classes}, more..., made);
    }
    return made;
  }
};

/// Registers a backend's stages; a nullptr writes nothing.
template <auto moments = nullptr, auto write_gradient = nullptr>
void register_sparse_stages(torch::Library& m) {
  m.impl("_shard_sparse_moments",
         sparse_shard_op<&SparseStage<empty::sparse_moments, moments>::run>);
  m.impl("_shard_sparse_gradient",
         sparse_shard_op<&SparseStage<empty::sparse_gradient, write_gradient>::run>);
}

}  // namespace gkd
