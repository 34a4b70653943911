// CPU backend of the operators on whole rows: runs the row kernels in parallel and reduces.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/tensors.h"

namespace gkd {
namespace {

void check_targets(const char* name, const cpu::Rows& rows) {
  for (std::int64_t row = 0; rows.targets && row < rows.count(); ++row) {
    const cpu::RowTarget target = rows.target(row);
    if (!target.ignored) check_target_value(name, target.value, rows.classes(), row);
  }
}

/// Runs every row; `store(row, result, target)` keeps what the caller needs of it.
template <class Store>
void run_rows(const cpu::Rows& rows, Store store) {
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    const cpu::RowTarget target = rows.target(row);
    cpu::RowResult result;
    if (target.ignored) {
      if (rows.gradient) rows.gradient->select(0, row).zero_();
    } else {
      result = rows.kernels.row(rows.task(row, target.value), executor, scratch);
    }
    store(row, result, target);
  });
}

/// t[k] = value, in the dtype of a loss.
void set(const at::Tensor& t, std::int64_t k, double value) {
  if (t.scalar_type() == at::kDouble) {
    t.mutable_data_ptr<double>()[k] = value;
  } else {
    t.mutable_data_ptr<float>()[k] = static_cast<float>(value);
  }
}

ForwardTensors forward_cpu(const LossOptions& s, Ref student, Ref teacher,
                           const OptionalTensor& target, bool need_grad) {
  cpu::Rows rows(s, student, teacher, target);
  check_targets("gkd::loss", rows);
  const GradScale scale = rows.grad_scale();
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor gradient = need_grad ? at::empty({student.size(0), student.size(1)}, student.options())
                                  : at::empty({0}, student.options());
  if (need_grad) rows.gradient = &gradient;
  rows.gradient_scale = scale.forward;
  std::vector<double> losses(rows.count());
  run_rows(rows, [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget) {
    losses[row] = r.loss;
  });
  if (s.reduction != "none") {
    losses = {rows.weight() * std::accumulate(losses.begin(), losses.end(), 0.0)};
  }
  at::Tensor loss =
      s.reduction == "none" ? at::empty({rows.count()}, options) : at::empty({}, options);
  for (std::int64_t k = 0; k < loss.numel(); ++k) set(loss, k, losses[k]);
  return {loss, gradient, at::full({}, scale.backward, options)};
}

GroupTensors group_cpu(const LossOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                       bool return_mask) {
  const cpu::Rows rows(s, student, teacher, target);
  check_targets("gkd::group", rows);
  const std::int64_t count = rows.count(), classes = rows.classes();
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor size = at::empty({count}, options.dtype(at::kLong));
  at::Tensor columns[6];  // six tensors, since an operator's outputs must not alias
  for (at::Tensor& column : columns) column = at::empty({count}, options);
  at::Tensor mask = at::empty({0}, options.dtype(at::kBool));
  if (return_mask) mask = at::empty({count, classes}, options.dtype(at::kBool));
  std::int64_t* sizes = size.mutable_data_ptr<std::int64_t>();
  const at::Tensor& rank = s.rank_by == "student" ? rows.student : rows.teacher;
  run_rows(rows, [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget row_target) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                              r.primary,   r.summary.binary, r.secondary};
    for (int k = 0; k < 6; ++k) set(columns[k], row, row_target.ignored ? nan : values[k]);
    sizes[row] = r.size;
    if (!return_mask) return;
    at::Tensor mask_row = mask.select(0, row);
    if (row_target.ignored || std::isnan(r.cut)) {
      mask_row.zero_();
      return;
    }
    // In the dtype of the cut: the lowest float would become -inf in 16 bits.
    at::ge_out(mask_row, rank.select(0, row).to(columns[0].scalar_type()), r.cut);
    if (row_target.value >= 0)
      mask.mutable_data_ptr<bool>()[row * classes + row_target.value] = true;
  });
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

/// out = in * grad_output * grad_scale, both contiguous; they may be the same tensor.
void scale_rows(Ref in, Ref out, Ref grad_output, Ref grad_scale) {
  const std::int64_t rows = in.size(0), classes = in.size(1);
  const at::Tensor factors = grad_output.to(at::kDouble) * grad_scale.item<double>();
  const std::int64_t stride = factors.dim() == 0 ? 0 : factors.stride(0);
  const double* factors_data = factors.const_data_ptr<double>();
  if (rows == 0) return;
  const char* from = static_cast<const char*>(in.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const auto scale = cpu::kernels().scale;
  // By segments, so that all threads work when there is one row.
  const std::int64_t segments = (classes + cpu::kSegment - 1) / cpu::kSegment;
  cpu::run_parallel(rows * segments, [&](std::int64_t k) {
    const std::int64_t row = k / segments, first = k % segments * cpu::kSegment;
    const double factor = factors_data[row * stride];
    if (from == to && factor == 1) return;  // nothing to do
    const std::int64_t offset = (row * classes + first) * in.element_size();
    scale(from + offset, to + offset, dtype_of(in), std::min(cpu::kSegment, classes - first),
          factor);
  });
}

at::Tensor scale_cpu(Ref gradient, Ref grad_output, Ref grad_scale) {
  at::Tensor out = at::empty(gradient.sizes(), gradient.options(), at::MemoryFormat::Contiguous);
  scale_rows(gradient.contiguous(), out, grad_output, grad_scale);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_ops<forward_cpu, group_cpu, scale_cpu>(m);
  m.impl("_scale_", [](Ref gradient, Ref grad_output, Ref grad_scale) {
    scale_rows(gradient, gradient, grad_output, grad_scale);
  });
}

// It has no tensor to dispatch on.
TORCH_LIBRARY_IMPL(gkd, CatchAll, m) {
  m.impl("_cpu_capability", [] { return std::string(cpu::kernels().name); });
}

}  // namespace gkd
