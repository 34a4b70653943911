// Shapes and dtypes only, for meta and fake tensors.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops.h"

namespace gkd {
namespace {

ForwardTensors forward_meta(const at::Tensor& student, const at::Tensor& teacher,
                            const OptionalTensor& /*target*/, const Settings& /*settings*/,
                            std::string_view reduction, bool need_grad) {
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  const auto rows = student.sym_size(0);
  at::Tensor loss =
      reduction == "none" ? at::empty_symint({rows}, options) : at::empty({}, options);
  at::Tensor gradient = need_grad ? at::empty_symint({rows, student.sym_size(1)}, student.options())
                                  : at::empty_symint({0}, student.options());
  return {loss, gradient, at::empty({}, options)};
}

at::Tensor scale_meta(const at::Tensor& gradient, const at::Tensor& /*grad_output*/,
                      const at::Tensor& /*weight*/, double /*factor*/) {
  return at::empty_symint(gradient.sym_sizes(), gradient.options());
}

GroupTensors group_meta(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& /*target*/, const Settings& /*settings*/,
                        bool return_mask) {
  const auto rows = student.sym_size(0);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  auto column = [&] { return at::empty_symint({rows}, options); };
  at::Tensor size = at::empty_symint({rows}, options.dtype(at::kLong));
  at::Tensor mask = return_mask
                        ? at::empty_symint({rows, student.sym_size(1)}, options.dtype(at::kBool))
                        : at::empty_symint({0}, options.dtype(at::kBool));
  return {size, column(), column(), column(), column(), column(), column(), mask};
}

// Fake targets have no values to look at.
void check_target_meta(const at::Tensor&, c10::SymInt, std::int64_t) {}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, Meta, m) {
  m.impl("_forward", &checked_forward<forward_meta>);
  m.impl("_scale", &scale_meta);
  m.impl("_check_target", &check_target_meta);
  m.impl("group", &checked_group<group_meta>);
}

}  // namespace gkd
