// sparse_loss and training_sparse_loss: what the backends register, as ops.h has it for losses of
// two networks' logits.
#pragma once

#include "gkd/gkd.h"
#include "ops.h"

namespace gkd {

/// The operator, for messages.
inline const char* sparse_name(bool is_training) {
  return is_training ? "gkd::training_sparse_loss" : "gkd::sparse_loss";
}

/// Throws unless shapes, dtypes, devices and settings are usable. The group's values are the
/// backend's to check.
void check_sparse(const char* name, Ref student, const TeacherGroup& group,
                  const OptionalTensor& target, const CallOptions& options, bool is_shard = false);

/// The rows of a call among those of a group.
struct GroupPart : TeacherGroup {
  /// Set: the group is longer, `indptr` is that of these rows alone, and this is the first of them.
  std::optional<std::int64_t> first_row;
};

/// The kernel of _sparse_forward: it checks, makes the results, and lets a backend's fill() write
/// them from rows.
template <auto fill>
ForwardTensors checked_sparse(const CallOptions& given, Ref student, Ref indptr, Ref indices,
                              Ref logits, Ref rest, const OptionalTensor& target, bool need_grad,
                              bool need_parts, std::optional<std::int64_t> first_row,
                              const OptionalTensor& margins,
                              const OptionalTensor& distillation_factor) {
  CallOptions o = with_factors(given, margins, distillation_factor);
  const TeacherGroup group{indptr, indices, logits, rest};
  check_sparse(sparse_name(need_parts), student, group, target, o);
  const ForwardTensors made = empty_forward(o, student, logits, need_grad, need_parts);
  if constexpr (!std::is_null_pointer_v<decltype(fill)>) {
    o.training.margins = by_row(margins);
    const GroupPart resolved{{indptr, indices, logits.resolve_neg(), rest.resolve_neg()},
                             first_row};
    fill(o, by_row(student).resolve_neg(), resolved, by_row(target), made);
  }
  return made;
}

/// Registers a backend's operator; a nullptr writes nothing.
template <auto fill = nullptr>
void register_sparse(torch::Library& m) {
  m.impl("_sparse_forward", &SettingsOp<&checked_sparse<fill>>::call);
}

}  // namespace gkd
