// Operators over a class shard: one stage each of a call, between collectives (math/messages.h).
#pragma once

#include "ops.h"

namespace gkd {

/// One rank's part of a call. Logits are [B, C_r]: classes class_start to class_start + C_r of
/// num_classes. Targets count from class 0 of the whole row.
struct ShardCall {
  const LossOptions& options;
  const at::Tensor &student, &teacher;
  const OptionalTensor& target;
  std::int64_t class_start, num_classes;

  std::int64_t rows() const { return student.size(0); }
  std::int64_t classes() const { return student.size(1); }
};

/// F(call, more...) under a schema of (logits, target, class_start, num_classes, more..., *,
/// settings...).
template <auto F>
struct ShardOp;
template <class R, class... More, R (*F)(const ShardCall&, More...)>
struct ShardOp<F> {
  static R call(const LossOptions& options, Ref student, Ref teacher, const OptionalTensor& target,
                std::int64_t class_start, std::int64_t num_classes, More... more) {
    return F({options, student, teacher, target, class_start, num_classes}, more...);
  }
};
template <auto F>
constexpr auto shard_op = &SettingsOp<&ShardOp<F>::call>::call;

/// Calls the stage `name` with a ShardCall.
template <class R, class... More>
R call_stage(const char* name, const ShardCall& c, More... more) {
  return call_op<R, Ref, Ref, const OptionalTensor&, std::int64_t, std::int64_t, More...>(
      name, c.options, c.student, c.teacher, c.target, c.class_start, c.num_classes, more...);
}

/// Registers a backend's stages under their schemas.
template <auto extremes, auto counts, auto histogram, auto refine, auto moments,
          auto write_gradient, auto loss>
void register_stages(torch::Library& m) {
  m.impl("_shard_extremes", shard_op<extremes>);
  m.impl("_shard_counts", shard_op<counts>);
  m.impl("_shard_histogram", shard_op<histogram>);
  m.impl("_shard_refine", shard_op<refine>);
  m.impl("_shard_moments", shard_op<moments>);
  m.impl("_shard_gradient", shard_op<write_gradient>);
  m.impl("_shard_loss", shard_op<loss>);
}

}  // namespace gkd
