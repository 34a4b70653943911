// The public C++ functions and the dispatcher handles behind them.
#include "gkd/gkd.h"

#include <torch/library.h>

#include "ops.h"

namespace gkd {
namespace {

using LossSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                 double, OptionalSize, double, double, double, double, bool,
                                 c10::string_view, c10::string_view, std::int64_t,
                                 c10::string_view);
using GroupSignature = GroupTensors(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                    double, OptionalSize, double, c10::string_view, std::int64_t,
                                    bool, c10::string_view);
using ForwardSignature = ForwardTensors(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                        double, OptionalSize, double, double, double, double, bool,
                                        c10::string_view, c10::string_view, std::int64_t, bool,
                                        c10::string_view);
using CheckTargetSignature = void(const at::Tensor&, c10::SymInt, std::int64_t);
using ScaleSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double);

template <class Signature>
c10::TypedOperatorHandle<Signature> handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

Settings settings_of(const LossOptions& o) {
  return {o.threshold,        o.group_size, o.temperature, o.primary_weight, o.binary_weight,
          o.secondary_weight, o.coupled,    o.rank_by,     o.ignore_index,   o.method};
}

at::Tensor loss_op(const at::Tensor& student, const at::Tensor& teacher,
                   const OptionalTensor& target, const Settings& s, std::string_view reduction) {
  static const auto op = handle<LossSignature>("gkd::loss");
  return op.call(student, teacher, target, s.threshold, s.group_size, s.temperature,
                 s.primary_weight, s.binary_weight, s.secondary_weight, s.coupled, s.rank_by,
                 reduction, s.ignore_index, s.method);
}

GroupTensors group_op(const at::Tensor& student, const at::Tensor& teacher,
                      const OptionalTensor& target, const Settings& s, bool return_mask) {
  static const auto op = handle<GroupSignature>("gkd::group");
  return op.call(student, teacher, target, s.threshold, s.group_size, s.temperature, s.rank_by,
                 s.ignore_index, return_mask, s.method);
}

ForwardTensors forward_op(const at::Tensor& student, const at::Tensor& teacher,
                          const OptionalTensor& target, const Settings& s,
                          std::string_view reduction, bool need_grad) {
  static const auto op = handle<ForwardSignature>("gkd::_forward");
  return op.call(student, teacher, target, s.threshold, s.group_size, s.temperature,
                 s.primary_weight, s.binary_weight, s.secondary_weight, s.coupled, s.rank_by,
                 reduction, s.ignore_index, need_grad, s.method);
}

at::Tensor scale_op(const at::Tensor& gradient, const at::Tensor& grad_output,
                    const at::Tensor& weight, double factor) {
  static const auto op = handle<ScaleSignature>("gkd::_scale");
  return op.call(gradient, grad_output, weight, factor);
}

void check_target_op(const at::Tensor& target, c10::SymInt classes, std::int64_t ignore_index) {
  static const auto op = handle<CheckTargetSignature>("gkd::_check_target");
  op.call(target, std::move(classes), ignore_index);
}

bool scale_in_place_op(const at::Tensor& gradient, const at::Tensor& grad_output,
                       const at::Tensor& weight, double factor) {
  using Signature = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, double);
  static const auto op = handle<Signature>("gkd::_scale_");
  const auto key = gradient.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  if (!gradient.key_set().has(key) || !op.hasKernelForDispatchKey(key)) return false;
  op.call(gradient, grad_output, weight, factor);
  return true;
}

at::Tensor loss(const at::Tensor& student, const at::Tensor& teacher,
                const std::optional<at::Tensor>& target, const LossOptions& options) {
  at::Tensor value = loss_op(student, teacher, target, settings_of(options), options.reduction);
  // After the loss, whose checks of shape and dtype come first.
  if (options.check_target && target) {
    check_target_op(*target, student.sym_size(1), options.ignore_index);
  }
  return value;
}

at::Tensor adaptive_group_size(const at::Tensor& student, double rate, std::int64_t step) {
  static const auto op =
      handle<at::Tensor(const at::Tensor&, double, std::int64_t)>("gkd::adaptive_group_size");
  return op.call(student, rate, step);
}

Group group(const at::Tensor& student, const at::Tensor& teacher,
            const std::optional<at::Tensor>& target, const LossOptions& options, bool return_mask) {
  auto [size, p, q, cut, primary, binary, secondary, mask] =
      group_op(student, teacher, target, settings_of(options), return_mask);
  return {size, p, q, cut, primary, binary, secondary, mask};
}

}  // namespace gkd
