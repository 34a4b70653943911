// A teacher's groups, to be kept without its logits.
//
// Built from gkd::group and ATen's own operators on whichever device the logits are on: it runs
// once per row of a teacher, whose own forward costs far more. Rows are processed some at a time,
// so that beside the result it allocates a few times kChunkBytes. The number of classes is known
// from values alone, so a device is waited for.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "sparse.h"

namespace gkd {
namespace {

constexpr char kName[] = "gkd::teacher_group";
/// Of float64 copies of rows.
constexpr std::int64_t kChunkBytes = std::int64_t(16) << 20;

using GroupParts = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check(const LossOptions& o, Ref teacher, const OptionalTensor& target,
           std::optional<at::ScalarType> dtype, std::optional<std::int64_t> max_classes) {
  check_inputs(kName, teacher, teacher, target, o);
  TORCH_CHECK_VALUE(o.rank_by == "teacher", kName,
                    ": rank_by must be teacher: the group is chosen without the student");
  TORCH_CHECK_TYPE(!dtype || *dtype == at::kHalf || *dtype == at::kBFloat16 ||
                       *dtype == at::kFloat || *dtype == at::kDouble,
                   kName, ": dtype must be float16, bfloat16, float32 or float64, got ",
                   c10::toString(dtype.value_or(at::kFloat)));
  TORCH_CHECK_VALUE(!max_classes || *max_classes >= 0, kName, ": max_classes must be >= 0, got ",
                    max_classes.value_or(0));
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  TORCH_CHECK_VALUE(teacher.sym_size(-1) <= kMost, kName, ": a row has at most ", kMost,
                    " classes, got ", teacher.sym_size(-1));
}

/// bool [b, C]: the rows' targets. Rows with ignore_index have none.
at::Tensor target_mask(const LossOptions& o, Ref target, std::int64_t classes,
                       std::int64_t first_row) {
  const at::Tensor on_cpu = target.to(at::kCPU, at::kLong).contiguous();
  const std::int64_t* values = on_cpu.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < on_cpu.numel(); ++row) {
    if (values[row] == o.ignore_index) continue;
    check_target_value(kName, values[row], classes, first_row + row);
  }
  const at::Tensor numbers = at::arange(classes, target.options().dtype(at::kLong));
  const at::Tensor own = target.to(at::kLong).unsqueeze(1);
  return at::logical_and(own.eq(numbers), own.ne(o.ignore_index));
}

/// log sum exp(u_j/T) over the classes outside the mask, double [b]; -inf where there are none.
/// (u - max)/T rather than u/T - max/T: logits may be of any size.
at::Tensor log_sum_outside(Ref logits, Ref mask, double temperature) {
  at::Tensor outside =
      logits.to(at::kDouble).masked_fill(mask, -std::numeric_limits<double>::infinity());
  const at::Tensor high = at::amax(outside, {1}, /*keepdim=*/true);
  const at::Tensor top = high.masked_fill(high.isneginf(), 0);
  outside.sub_(top).div_(temperature).exp_();
  return at::sum(outside, {1}).log_().add_(top.squeeze(1).div(temperature));
}

GroupParts group_rows(const LossOptions& o, Ref given, const OptionalTensor& target,
                      std::optional<at::ScalarType> dtype,
                      std::optional<std::int64_t> max_classes) {
  check(o, given, target, dtype, max_classes);
  TORCH_CHECK_NOT_IMPLEMENTED(!given.is_meta(), kName,
                              ": the number of classes is known from the logits' values alone");
  const at::Tensor teacher = by_row(given);
  const OptionalTensor targets = by_row(target);
  const std::int64_t rows = teacher.size(0), classes = teacher.size(1);
  const at::ScalarType kept_dtype = dtype.value_or(teacher.scalar_type());
  LossOptions grouping = o;
  grouping.reduction = "none";
  const auto options = teacher.options();
  at::Tensor indptr = at::zeros({rows + 1}, options.dtype(at::kLong));
  // double whatever the logits are: where student and teacher nearly agree, float32 has no digits.
  at::Tensor rest = at::empty({rows}, options.dtype(at::kDouble));
  std::vector<at::Tensor> indices{at::empty({0}, options.dtype(at::kInt))};
  std::vector<at::Tensor> logits{at::empty({0}, options.dtype(kept_dtype))};
  const std::int64_t chunk = std::max<std::int64_t>(1, kChunkBytes / (classes * 8));
  for (std::int64_t row = 0; row < rows; row += chunk) {
    const std::int64_t count = std::min(chunk, rows - row);
    const at::Tensor part = teacher.narrow(0, row, count), kept = part.to(kept_dtype);
    const auto found =
        call_op<GroupTensors>(kGroup, grouping, part, part, OptionalTensor(), /*mask=*/true);
    at::Tensor mask = std::get<7>(found);
    if (targets) {
      mask.logical_or_(target_mask(o, targets->narrow(0, row, count), classes, row));
    }
    at::Tensor invalid = std::get<3>(found).isnan();  // the cut
    if (kept_dtype != teacher.scalar_type()) invalid.logical_or_(kept.isposinf().any(1));
    mask.masked_fill_(invalid.unsqueeze(1), false);
    const at::Tensor sizes = mask.sum(1);
    if (max_classes && sizes.gt(*max_classes).any().item<bool>()) {
      const auto at_row = sizes.gt(*max_classes).nonzero()[0].item<std::int64_t>();
      TORCH_CHECK_VALUE(false, kName, ": the group of row ", row + at_row, " has ",
                        sizes[at_row].item<std::int64_t>(),
                        " classes, more than max_classes = ", *max_classes);
    }
    indptr.narrow(0, row + 1, count).copy_(sizes);
    rest.narrow(0, row, count)
        .copy_(log_sum_outside(part, mask, o.temperature)
                   .masked_fill_(invalid, std::numeric_limits<double>::quiet_NaN()));
    indices.push_back(mask.nonzero().select(1, 1).to(at::kInt));
    logits.push_back(kept.masked_select(mask));
  }
  return {indptr.cumsum(0), at::cat(indices), at::cat(logits), rest};
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("teacher_group", &SettingsOp<group_rows>::call);
  m.impl("_check_teacher_group", &SettingsOp<check>::call);
}
TORCH_LIBRARY_IMPL(gkd, Autograd, m) {
  m.impl("teacher_group", torch::autograd::autogradNotImplementedFallback());
}

TeacherGroup teacher_group(const at::Tensor& teacher, const std::optional<at::Tensor>& target,
                           const LossOptions& options, std::optional<at::ScalarType> dtype,
                           std::optional<std::int64_t> max_classes) {
  const auto parts = call_op<GroupParts>(kName, options, teacher, target, dtype, max_classes);
  return std::apply([](const auto&... part) { return TeacherGroup{part...}; }, parts);
}

}  // namespace gkd
