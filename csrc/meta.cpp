// Shapes and dtypes only, for meta and fake tensors.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "math/messages.h"
#include "shard_call.h"

namespace gkd {
namespace {

ForwardTensors forward_meta(const LossOptions& o, Ref student, Ref teacher,
                            const OptionalTensor& /*target*/, bool need_grad) {
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  const auto rows = student.sym_size(0);
  at::Tensor loss =
      o.reduction == "none" ? at::empty_symint({rows}, options) : at::empty({}, options);
  at::Tensor gradient = need_grad ? at::empty_symint({rows, student.sym_size(1)}, student.options())
                                  : at::empty_symint({0}, student.options());
  return {loss, gradient, at::empty({}, options)};
}

at::Tensor scale_meta(Ref gradient, Ref /*grad_output*/, Ref /*grad_scale*/) {
  return at::empty_symint(gradient.sym_sizes(), gradient.options());
}

GroupTensors group_meta(const LossOptions& /*options*/, Ref student, Ref teacher,
                        const OptionalTensor& /*target*/, bool return_mask) {
  const auto rows = student.sym_size(0);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  auto column = [&] { return at::empty_symint({rows}, options); };
  at::Tensor size = at::empty_symint({rows}, options.dtype(at::kLong));
  at::Tensor mask = return_mask
                        ? at::empty_symint({rows, student.sym_size(1)}, options.dtype(at::kBool))
                        : at::empty_symint({0}, options.dtype(at::kBool));
  return {size, column(), column(), column(), column(), column(), column(), mask};
}

at::Tensor message(const ShardCall& c, std::int64_t width, at::ScalarType dtype) {
  return at::empty_symint({c.student.sym_size(0), width}, c.student.options().dtype(dtype));
}
at::Tensor extremes_meta(const ShardCall& c) { return message(c, kMsgExtremes, at::kLong); }
at::Tensor counts_meta(const ShardCall& c, Ref) { return message(c, kBins, at::kInt); }
at::Tensor amounts_meta(const ShardCall& c, Ref, Ref, Ref) {
  return message(c, kMsgHistogram, at::kLong);
}
TensorPair narrow_meta(const ShardCall& c, Ref, Ref, Ref) {
  return {message(c, kSearchFields, at::kLong), message(c, 1, at::kDouble).squeeze(1)};
}
at::Tensor moments_meta(const ShardCall& c, Ref) { return message(c, kMsgMoments, at::kDouble); }
TensorPair emit_meta(const ShardCall& c, Ref, Ref, bool need_grad) {
  const auto options = c.student.options();
  return {need_grad ? at::empty_symint(c.student.sym_sizes(), options) : at::empty({0}, options),
          message(c, 2, at::kDouble)};
}
TensorPair loss_meta(const ShardCall& c, Ref, Ref) {
  const auto options = c.student.options().dtype(compute_dtype(c.student, c.teacher));
  return {c.options.reduction == "none" ? at::empty_symint({c.student.sym_size(0)}, options)
                                        : at::empty({}, options),
          at::empty({}, options)};
}

// Fake targets have no values to look at.
// NOLINTNEXTLINE(performance-unnecessary-value-param): the dispatcher passes SymInt by value
void check_target_meta(const at::Tensor&, c10::SymInt, std::int64_t) {}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, Meta, m) {
  register_ops<forward_meta, group_meta, scale_meta>(m);
  m.impl("_check_target", &check_target_meta);
  register_stages<extremes_meta, counts_meta, amounts_meta, narrow_meta, moments_meta, emit_meta,
                  loss_meta>(m);
}

}  // namespace gkd
