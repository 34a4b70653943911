// The public C++ functions: each calls its operator through the dispatcher.
#include "gkd/gkd.h"

#include <ATen/ATen.h>

#include "ops.h"

namespace gkd {

at::Tensor loss(const at::Tensor& student, const at::Tensor& teacher,
                const std::optional<at::Tensor>& target, const LossOptions& options) {
  at::Tensor value = call_op<at::Tensor>("gkd::loss", options, student, teacher, target);
  // After the loss, whose checks of shape and dtype come first.
  if (options.check_target && target) {
    call<void>("gkd::_check_target", *target, student.sym_size(-1), options.ignore_index);
  }
  return value;
}

TrainingLoss training_loss(const at::Tensor& student, const at::Tensor& teacher,
                           const at::Tensor& target, const TrainingOptions& training,
                           const LossOptions& options) {
  const auto [total, cross_entropy, distillation] =
      call_op<TensorTriple>(kTrainingLoss, CallOptions{options, training}, student, teacher, target,
                            training.margins, training.distillation_factor);
  if (options.check_target) {
    call<void>("gkd::_check_target", target, student.sym_size(-1), options.ignore_index);
  }
  return {total, cross_entropy, distillation};
}

at::Tensor adaptive_group_size(const at::Tensor& student, double rate, std::int64_t step) {
  return call<at::Tensor>("gkd::adaptive_group_size", student, rate, step);
}

Group group(const at::Tensor& student, const at::Tensor& teacher,
            const std::optional<at::Tensor>& target, const LossOptions& options, bool return_mask) {
  const auto columns =
      call_op<GroupTensors>("gkd::group", options, student, teacher, target, return_mask);
  return std::apply([](const auto&... column) { return Group{column...}; }, columns);
}

}  // namespace gkd
