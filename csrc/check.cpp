#include "check.h"

#include <ATen/ATen.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace gkd {
namespace {

void check_dtype(const char* name, const char* which, const at::Tensor& t) {
  TORCH_CHECK_TYPE(at::isFloatingType(t.scalar_type()) || at::isComplexType(t.scalar_type()), name,
                   ": expected floating point ", which, ", got ", c10::toString(t.scalar_type()));
  const auto dtype = t.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      name, ": unsupported dtype of ", which,
      ": expected float16, bfloat16, float32 or float64, got ", c10::toString(dtype));
}

void check_logits(const char* name, const char* which, const at::Tensor& t) {
  check_dtype(name, which, t);
  TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, name, ": ", which,
                              " must be a dense (strided) tensor, got ", t.layout());
  TORCH_CHECK_VALUE(t.dim() >= 1, name, ": ", which, " must be [..., C], got a scalar");
}

void check_target_dtype(const char* name, const at::Tensor& target) {
  const auto dtype = target.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kLong || dtype == at::kInt, name,
                   ": target must be int64 or int32, got ", c10::toString(dtype));
}

void check_temperature(const char* name, const char* which, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, ": ", which,
                    " must be finite and > 0, got ", value);
  TORCH_CHECK_VALUE(value >= 1e-6 && value <= 1e6, name, ": ", which,
                    " must be in [1e-6, 1e6], got ", value);
}

/// Beyond the bound T times a weight would overflow float32, in which rows are computed.
void check_weight(const char* name, const char* which, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value), name, ": ", which, " must be finite, got ", value);
  TORCH_CHECK_VALUE(std::abs(value) <= 1e30, name, ": ", which, " must be in [-1e30, 1e30], got ",
                    value);
}

/// A tensor of floats beside the logits. It is a constant of the loss.
void check_factor(const char* name, const char* which, const at::Tensor& t,
                  const at::Tensor& student, c10::SymIntArrayRef shape) {
  check_dtype(name, which, t);
  TORCH_CHECK_VALUE(t.sym_sizes().equals(shape), name, ": ", which, " must be a number or ", shape,
                    ", got ", t.sym_sizes());
  TORCH_CHECK(t.device() == student.device(), name, ": all tensors must be on one device, got ",
              student.device(), " and ", t.device());
}

}  // namespace

void check_inputs(const char* name, const at::Tensor& student, const at::Tensor& teacher,
                  const std::optional<at::Tensor>& target, const LossOptions& s, bool is_shard) {
  const char* names[2] = {is_shard ? "student_shard" : "student_logits",
                          is_shard ? "teacher_shard" : "teacher_logits"};
  check_logits(name, names[0], student);
  check_logits(name, names[1], teacher);
  TORCH_CHECK_VALUE(student.sym_sizes().equals(teacher.sym_sizes()), name, ": ", names[1],
                    " must be ", student.sym_sizes(), " as ", names[0], ", got ",
                    teacher.sym_sizes());
  TORCH_CHECK_VALUE(is_shard || student.sym_size(-1) != 0, name, ": ", names[0],
                    " must have at least one class, got ", student.sym_sizes());
  TORCH_CHECK(student.device() == teacher.device(), name,
              ": all tensors must be on one device, got ", student.device(), " and ",
              teacher.device());
  if (target) {
    check_target_dtype(name, *target);
    const auto leading = student.sym_sizes().slice(0, student.dim() - 1);
    TORCH_CHECK_VALUE(target->sym_sizes().equals(leading), name, ": target must be ", leading,
                      ", got ", target->sym_sizes());
    TORCH_CHECK(target->device() == student.device(), name,
                ": all tensors must be on one device, got ", student.device(), " and ",
                target->device());
  }
  check_temperature(name, "temperature", s.temperature);
  if (s.group_temperature) check_temperature(name, "group_temperature", *s.group_temperature);
  TORCH_CHECK_VALUE(!s.threshold || (*s.threshold > 0 && *s.threshold <= 1), name,
                    ": threshold must be in (0, 1], got ", *s.threshold);
  TORCH_CHECK_VALUE(!s.group_size || *s.group_size >= 0, name, ": group_size must be >= 0, got ",
                    *s.group_size);
  check_weight(name, "primary_weight", s.primary_weight);
  check_weight(name, "binary_weight", s.binary_weight);
  check_weight(name, "secondary_weight", s.secondary_weight);
  TORCH_CHECK_VALUE(s.rank_by == "teacher" || s.rank_by == "student", name,
                    ": rank_by must be teacher or student, got ", s.rank_by);
  TORCH_CHECK_VALUE(s.reduction == "none" || s.reduction == "mean" || s.reduction == "sum", name,
                    ": reduction must be none, mean or sum, got ", s.reduction);
  TORCH_CHECK_VALUE(s.method == "auto" || s.method == "sort" || s.method == "select", name,
                    ": method must be auto, sort or select, got ", s.method);
}

void check_training(const char* name, const at::Tensor& student,
                    const std::optional<at::Tensor>& target, const CallOptions& s) {
  const TrainingOptions& o = s.training;
  check_weight(name, "cross_entropy_weight", o.cross_entropy_weight);
  check_weight(name, "distillation_weight", o.distillation_weight);
  check_weight(name, "margin", o.margin);
  check_temperature(name, "scale", o.scale);
  const double largest = std::max(
      {std::abs(s.primary_weight), std::abs(s.binary_weight), std::abs(s.secondary_weight)});
  const double slope =
      o.scale * std::max(std::abs(o.cross_entropy_weight),
                         std::abs(o.distillation_weight) * s.temperature * largest);
  TORCH_CHECK_VALUE(slope <= 1e36 || o.scale == 1, name,
                    ": scale, temperature and weights must have a product of at most 1e36, got ",
                    slope);
  const bool has_margin = o.margin != 0 || o.margins;
  TORCH_CHECK_VALUE(target || (o.cross_entropy_weight == 0 && !has_margin), name,
                    ": cross-entropy and margin need a target");
  const auto leading = student.sym_sizes().slice(0, student.dim() - 1);
  if (o.margins) check_factor(name, "margin", *o.margins, student, leading);
  if (o.distillation_factor) {
    check_factor(name, "distillation_weight", *o.distillation_factor, student, {});
  }
}

void check_shard_range(const char* name, const c10::SymInt& classes, std::int64_t class_start,
                       std::int64_t num_classes) {
  // Counts of classes travel as int32.
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  TORCH_CHECK_VALUE(num_classes >= 1 && num_classes <= kMost, name, ": num_classes must be in [1, ",
                    kMost, "], got ", num_classes);
  TORCH_CHECK_VALUE(class_start >= 0 && classes + class_start <= num_classes, name,
                    ": class_start must leave the shard's ", classes, " classes within the ",
                    num_classes, " of num_classes, got ", class_start);
}

void check_adaptive(const char* name, const at::Tensor& student, double rate, std::int64_t step) {
  check_logits(name, "student_logits", student);
  TORCH_CHECK_VALUE(student.sym_size(-1) != 0, name,
                    ": student_logits must have at least one class, got ", student.sym_sizes());
  TORCH_CHECK_VALUE(rate > 0 && rate <= 1, name, ": rate must be in (0, 1], got ", rate);
  TORCH_CHECK_VALUE(step >= 1, name, ": step must be >= 1, got ", step);
}

void check_target_value(const char* name, std::int64_t value, std::int64_t classes,
                        std::int64_t row) {
  TORCH_CHECK_INDEX(value >= 0 && value < classes, name, ": target ", value,
                    " is out of bounds for ", classes, " classes (row ", row, ")");
}

at::ScalarType compute_dtype(const at::Tensor& student, const at::Tensor& teacher) {
  const bool any_double =
      student.scalar_type() == at::kDouble || teacher.scalar_type() == at::kDouble;
  return any_double ? at::kDouble : at::kFloat;
}

namespace {

/// gkd::_check_target for every backend: the targets, not the logits, come to the CPU.
void check_target(const at::Tensor& target, std::int64_t classes, std::int64_t ignore_index) {
  check_target_dtype("gkd::loss", target);
  const at::Tensor values = target.to(at::kCPU, at::kLong).contiguous();
  const std::int64_t* value = values.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < values.numel(); ++row) {
    if (value[row] != ignore_index) check_target_value("gkd::loss", value[row], classes, row);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) { m.impl("_check_target", &check_target); }

}  // namespace gkd
