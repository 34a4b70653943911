// Operators over a class shard: one stage each of a call, between collectives (math/shard.h). All
// take the same arguments and settings as gkd::_forward beside what the other ranks have said.
#pragma once

#include "ops.h"

namespace gkd {

/// One rank's part of a call. Logits are [B, C_r]: classes class_start to class_start + C_r of
/// num_classes. Targets count from class 0 of the whole row.
struct ShardCall {
  const at::Tensor &student, &teacher;
  const OptionalTensor& target;
  Settings settings;
  std::string_view reduction;
  std::int64_t class_start, num_classes;

  std::int64_t rows() const { return student.size(0); }
  std::int64_t classes() const { return student.size(1); }
};

/// A function of ShardCall and what a stage is given besides, under the schema of the stage: logits
/// and target, then its own tensors and numbers, then the settings.
template <auto F>
struct ShardOp;
template <class R, class... Extra, R (*F)(const ShardCall&, Extra...)>
struct ShardOp<F> {
  static R call(const at::Tensor& student, const at::Tensor& teacher, const OptionalTensor& target,
                Extra... extra, double threshold, OptionalSize group_size, double temperature,
                double primary_weight, double binary_weight, double secondary_weight, bool coupled,
                c10::string_view rank_by, c10::string_view reduction, std::int64_t ignore_index,
                std::int64_t class_start, std::int64_t num_classes) {
    const ShardCall c{student,
                      teacher,
                      target,
                      {threshold, group_size, temperature, primary_weight, binary_weight,
                       secondary_weight, coupled, rank_by, ignore_index, "select"},
                      reduction,
                      class_start,
                      num_classes};
    return F(c, extra...);
  }
};

/// Calls the stage `name` with a ShardCall.
template <class R, class... Extra>
R call_stage(const char* name, const ShardCall& c, Extra... extra) {
  using Signature = R(const at::Tensor&, const at::Tensor&, const OptionalTensor&, Extra..., double,
                      OptionalSize, double, double, double, double, bool, c10::string_view,
                      c10::string_view, std::int64_t, std::int64_t, std::int64_t);
  const Settings& s = c.settings;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().call(
      c.student, c.teacher, c.target, extra..., s.threshold, s.group_size, s.temperature,
      s.primary_weight, s.binary_weight, s.secondary_weight, s.coupled, s.rank_by, c.reduction,
      s.ignore_index, c.class_start, c.num_classes);
}

using TensorPair = std::tuple<at::Tensor, at::Tensor>;
using Ref = const at::Tensor&;

/// Registers a backend's stages under their schemas.
template <auto extremes, auto counts, auto amounts, auto narrow, auto moments, auto emit, auto loss>
void register_stages(torch::Library& m) {
  m.impl("_shard_extremes", &ShardOp<extremes>::call);
  m.impl("_shard_counts", &ShardOp<counts>::call);
  m.impl("_shard_amounts", &ShardOp<amounts>::call);
  m.impl("_shard_narrow", &ShardOp<narrow>::call);
  m.impl("_shard_moments", &ShardOp<moments>::call);
  m.impl("_shard_emit", &ShardOp<emit>::call);
  m.impl("_shard_loss", &ShardOp<loss>::call);
}

}  // namespace gkd
