// Shapes and dtypes only, for meta and fake tensors.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops.h"

namespace gkd {
namespace {

std::tuple<at::Tensor, at::Tensor> forward_meta(
    const at::Tensor& student, const at::Tensor& teacher, const OptionalTensor& target,
    double threshold, std::optional<std::int64_t> group_size, double temperature,
    double primary_weight, double binary_weight, double secondary_weight, bool coupled,
    c10::string_view rank_by, std::int64_t ignore_index, bool need_grad) {
  check_inputs("gkd::_forward", student, teacher, target,
               {threshold, group_size, temperature, primary_weight, binary_weight,
                secondary_weight, coupled, rank_by, ignore_index});
  const auto rows = student.sym_size(0);
  at::Tensor loss =
      at::empty_symint({rows}, student.options().dtype(compute_dtype(student, teacher)));
  at::Tensor gradient = need_grad
                            ? at::empty_symint({rows, student.sym_size(1)}, student.options())
                            : at::empty_symint({0}, student.options());
  return {loss, gradient};
}

at::Tensor scale_meta(const at::Tensor& gradient, const at::Tensor& row_scale, double) {
  (void)row_scale;
  return at::empty_symint(gradient.sym_sizes(), gradient.options());
}

GroupTensors group_meta(const at::Tensor& student, const at::Tensor& teacher,
                        const OptionalTensor& target, double threshold,
                        std::optional<std::int64_t> group_size, double temperature,
                        double primary_weight, double binary_weight, double secondary_weight,
                        bool coupled, c10::string_view rank_by, std::int64_t ignore_index,
                        bool return_mask) {
  check_inputs("gkd::group", student, teacher, target,
               {threshold, group_size, temperature, primary_weight, binary_weight,
                secondary_weight, coupled, rank_by, ignore_index});
  const auto rows = student.sym_size(0);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  auto column = [&] { return at::empty_symint({rows}, options); };
  at::Tensor size = at::empty_symint({rows}, options.dtype(at::kLong));
  at::Tensor mask = return_mask
                        ? at::empty_symint({rows, student.sym_size(1)}, options.dtype(at::kBool))
                        : at::empty_symint({0}, options.dtype(at::kBool));
  return {size, column(), column(), column(), column(), column(), column(), mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, Meta, m) {
  m.impl("_forward", &forward_meta);
  m.impl("_scale", &scale_meta);
  m.impl("group", &group_meta);
}

}  // namespace gkd
