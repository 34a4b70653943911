// CPU backend of the operators on whole rows: runs the row kernels in parallel and reduces.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/losses.h"

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
    const cpu::RowTask task = rows.task(row, target.value);
    cpu::RowResult result;
    if (!target.ignored) {
      result = rows.kernels.row(task, executor, scratch);
    } else {
      rows.clear_gradient(row);
    }
    store(row, result, target);
  });
}

void forward_cpu(const CallOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                 const ForwardTensors& made) {
  cpu::Rows rows(s, student, teacher, target);
  check_targets(cpu::has_parts(made) ? kTrainingLoss : kLoss, rows);
  cpu::Losses losses(&rows, made);
  run_rows(rows, [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget) {
    losses.set_row(row, r);
  });
  losses.write(rows);
}

void group_cpu(const CallOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
               const GroupTensors& made) {
  CallOptions options = s;  // every term is reported, whether or not the loss uses it
  options.primary_weight = options.binary_weight = options.secondary_weight = 1;
  const cpu::Rows rows(options, student, teacher, target);
  check_targets(kGroup, rows);
  const auto& [size, p, q, cut, primary, binary, secondary, mask] = made;
  const at::Tensor columns[6] = {p, q, cut, primary, binary, secondary};
  const at::Tensor mask_rows = mask.numel() > 0 ? mask.view(student.sizes()) : mask;
  std::int64_t* sizes = size.mutable_data_ptr<std::int64_t>();
  const at::Tensor& rank = s.rank_by == "student" ? student : teacher;
  run_rows(rows, [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget row_target) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                              r.primary,   r.summary.binary, r.secondary};
    for (int k = 0; k < 6; ++k) cpu::set(columns[k], row, row_target.ignored ? nan : values[k]);
    sizes[row] = r.size;
    if (mask_rows.numel() == 0) return;
    at::Tensor mask_row = mask_rows.select(0, row);
    if (row_target.ignored || std::isnan(r.cut)) {
      mask_row.zero_();
      return;
    }
    // In the dtype of the cut: the lowest float would become -inf in 16 bits.
    at::ge_out(mask_row, rank.select(0, row).to(columns[0].scalar_type()), r.cut);
    if (row_target.value >= 0) mask_row[row_target.value] = true;
  });
}

void scale_cpu(Ref in, Ref out, Ref grad_output, Ref grad_scale) {
  if (in.numel() == 0) return;
  const std::int64_t classes = in.size(-1), rows = in.numel() / classes;
  const at::Tensor factors = grad_output.to(at::kDouble) * grad_scale.item<double>();
  const std::int64_t stride = factors.dim() == 0 ? 0 : factors.stride(0);
  const double* factors_data = factors.const_data_ptr<double>();
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

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) { register_ops<forward_cpu, group_cpu, scale_cpu>(m); }

// It has no tensor to dispatch on.
TORCH_LIBRARY_IMPL(gkd, CatchAll, m) {
  m.impl("_cpu_capability", [] { return std::string(cpu::kernels().name); });
}

}  // namespace gkd
