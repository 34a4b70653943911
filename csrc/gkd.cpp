// The public C++ functions: each calls its operator through the dispatcher.
#include "gkd/gkd.h"

#include <ATen/ATen.h>

#include "ops.h"

namespace gkd {

at::Tensor loss(const at::Tensor& student, const at::Tensor& teacher,
                const std::optional<at::Tensor>& target, const LossOptions& options) {
  at::Tensor value = call_op<at::Tensor, Ref, Ref, const OptionalTensor&>("gkd::loss", options,
                                                                          student, teacher, target);
  // After the loss, whose checks of shape and dtype come first.
  if (options.check_target && target) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("gkd::_check_target", "")
                               .typed<void(const at::Tensor&, c10::SymInt, std::int64_t)>();
    op.call(*target, student.sym_size(-1), options.ignore_index);
  }
  return value;
}

at::Tensor adaptive_group_size(const at::Tensor& student, double rate, std::int64_t step) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gkd::adaptive_group_size", "")
                             .typed<at::Tensor(const at::Tensor&, double, std::int64_t)>();
  return op.call(student, rate, step);
}

Group group(const at::Tensor& student, const at::Tensor& teacher,
            const std::optional<at::Tensor>& target, const LossOptions& options, bool return_mask) {
  auto [size, p, q, cut, primary, binary, secondary, mask] =
      call_op<GroupTensors, Ref, Ref, const OptionalTensor&, bool>("gkd::group", options, student,
                                                                   teacher, target, return_mask);
  return {size, p, q, cut, primary, binary, secondary, mask};
}

}  // namespace gkd
