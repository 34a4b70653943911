// Operators over a class shard: one stage each of a call, between collectives (math/messages.h).
#pragma once

#include "math/messages.h"
#include "ops.h"

namespace gkd {

/// One rank's part of a call. Logits are [B, C_r]: classes class_start to class_start + C_r of
/// num_classes. Targets count from class 0 of the whole row.
struct ShardCall {
  const CallOptions& options;
  const at::Tensor &student, &teacher;
  const OptionalTensor& target;
  std::int64_t class_start, num_classes;

  std::int64_t rows() const { return student.size(0); }
  std::int64_t classes() const { return student.size(1); }
  bool has_cross_entropy() const { return options.training.cross_entropy_weight != 0; }
  /// Of a row's message.
  int moments_width() const { return has_cross_entropy() ? kMsgWithHead : kMsgMoments; }
  /// Whether ranking logits need keys of the arithmetic's dtype: a target with its margin may lie
  /// between two numbers of their own.
  bool has_wide_keys() const { return options.training.distill_margin; }
};

/// F(call, more...) under a schema of (logits, target, class_start, num_classes, more..., margins,
/// distillation_factor, *, settings...); or, as the public loss has it, without these two.
template <auto F>
struct ShardOp;
template <class R, class... More, R (*F)(const ShardCall&, More...)>
struct ShardOp<F> {
  static R call(const CallOptions& options, Ref student, Ref teacher, const OptionalTensor& target,
                std::int64_t class_start, std::int64_t num_classes, More... more,
                const OptionalTensor& margins, const OptionalTensor& distillation_factor) {
    const CallOptions all = with_factors(options, margins, distillation_factor);
    return F({all, student, teacher, target, class_start, num_classes}, more...);
  }
  static R call_loss(const LossOptions& options, Ref student, Ref teacher,
                     const OptionalTensor& target, std::int64_t class_start,
                     std::int64_t num_classes, More... more) {
    return F({CallOptions{options}, student, teacher, target, class_start, num_classes}, more...);
  }
};
template <auto F>
constexpr auto shard_op = &SettingsOp<&ShardOp<F>::call>::call;
template <auto F>
constexpr auto shard_loss_op = &SettingsOp<&ShardOp<F>::call_loss>::call;

/// Calls the stage `name` with a ShardCall.
template <class R, class... More>
R call_stage(const char* name, const ShardCall& c, const More&... more) {
  return call_op<R>(name, c.options, c.student, c.teacher, c.target, c.class_start, c.num_classes,
                    more..., c.options.training.margins, c.options.training.distillation_factor);
}

using LossTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// What the stages return, not yet written.
namespace empty {
inline at::Tensor message(const ShardCall& c, std::int64_t width, at::ScalarType dtype) {
  return at::empty_symint({c.student.sym_size(0), width}, c.student.options().dtype(dtype));
}
inline at::Tensor extremes(const ShardCall& c) { return message(c, kMsgExtremes, at::kLong); }
inline at::Tensor counts(const ShardCall& c, Ref) { return message(c, kBins, at::kInt); }
inline at::Tensor histogram(const ShardCall& c, Ref, Ref, Ref) {
  return message(c, kMsgHistogram, at::kLong);
}
inline TensorPair refine(const ShardCall& c, Ref, Ref, Ref) {
  return {message(c, kSearchFields, at::kLong),
          empty_column(c.student, c.student.options().dtype(at::kDouble))};
}
inline at::Tensor moments(const ShardCall& c, Ref) {
  return message(c, c.moments_width(), at::kDouble);
}
inline TensorPair write_gradient(const ShardCall& c, Ref, Ref, bool need_grad) {
  return {empty_matrix(need_grad, c.student, c.student.options()), message(c, 2, at::kDouble)};
}
/// The loss, grad_scale, and the loss's parts.
inline LossTensors loss(const ShardCall& c, Ref, Ref) {
  const auto options = c.student.options().dtype(compute_dtype(c.student, c.teacher));
  const auto value = [&] { return empty_loss(c.options, c.student, options); };
  return {value(), at::empty({}, options), value(), value()};
}
}  // namespace empty

/// What a call of logits like `student`, [..., C_r], returns, from what its stages made of rows.
inline ForwardTensors shaped_as(Ref student, const LossOptions& options, Ref gradient,
                                bool need_grad, const LossTensors& made) {
  const auto& [loss, grad_scale, cross_entropy, distillation] = made;
  const auto shape = student.sym_sizes();
  const auto reduced = [&](const at::Tensor& t) {
    return options.reduction == "none" ? t.view_symint(shape.slice(0, shape.size() - 1)) : t;
  };
  return {reduced(loss), need_grad ? gradient.view_symint(shape) : gradient, grad_scale,
          reduced(cross_entropy), reduced(distillation)};
}

/// The stage that returns make(call, more...), written by a backend's fill(call, more..., results).
template <auto make, auto fill>
struct Stage;
template <class R, class... More, R (*make)(const ShardCall&, More...), auto fill>
struct Stage<make, fill> {
  static R run(const ShardCall& c, More... more) {
    R made = make(c, more...);
    if constexpr (!std::is_null_pointer_v<decltype(fill)>) {
      const at::Tensor student = c.student.resolve_neg(), teacher = c.teacher.resolve_neg();
      fill({c.options, student, teacher, c.target, c.class_start, c.num_classes}, more..., made);
    }
    return made;
  }
};

/// A row of int64 messages, which in memory are the kernels' long long; null for a search that is
/// [0].
inline long long* int64_row(Ref messages, std::int64_t row = 0) {
  if (messages.dim() == 1) return nullptr;
  return reinterpret_cast<long long*>(messages.mutable_data_ptr<std::int64_t>()) +
         row * messages.size(1);
}

/// Registers a backend's stages under their schemas; a nullptr writes nothing.
template <auto extremes = nullptr, auto counts = nullptr, auto histogram = nullptr,
          auto refine = nullptr, auto moments = nullptr, auto write_gradient = nullptr,
          auto loss = nullptr>
void register_stages(torch::Library& m) {
  m.impl("_shard_extremes", shard_op<&Stage<empty::extremes, extremes>::run>);
  m.impl("_shard_counts", shard_op<&Stage<empty::counts, counts>::run>);
  m.impl("_shard_histogram", shard_op<&Stage<empty::histogram, histogram>::run>);
  m.impl("_shard_refine", shard_op<&Stage<empty::refine, refine>::run>);
  m.impl("_shard_moments", shard_op<&Stage<empty::moments, moments>::run>);
  m.impl("_shard_gradient", shard_op<&Stage<empty::write_gradient, write_gradient>::run>);
  m.impl("_shard_loss", shard_op<&Stage<empty::loss, loss>::run>);
}

}  // namespace gkd
