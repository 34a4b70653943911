// CPU backend of the operators on whole rows: runs the row kernels in parallel and reduces.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace gkd {
namespace {

/// Checks every target, and returns the number of rows that are not ignored.
std::int64_t counted_rows(const char* name, const at::Tensor& student, const OptionalTensor& target,
                          const LossOptions& s) {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < student.size(0); ++row) {
    const cpu::RowTarget row_target = cpu::target_of(target, row, s.ignore_index);
    if (target && !row_target.ignored) {
      check_target_value(name, row_target.value, student.size(1), row);
    }
    counted += !row_target.ignored;
  }
  return counted;
}

/// Runs every row; `store(row, result, target)` keeps what the caller needs of it.
template <class Store>
void for_rows(const at::Tensor& student, const at::Tensor& teacher, const OptionalTensor& target,
              const LossOptions& s, double gradient_scale, const at::Tensor& gradient,
              Store store) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const bool in_double = compute_dtype(student, teacher) == at::kDouble;
  const cpu::RowFunction run_row = cpu::kernels().of(in_double).row;
  cpu::RowTask common;
  common.classes = classes;
  common.gradient_scale = gradient_scale;
  common.selection = selection_of(s);
  common.weights = weights_of(s);
  cpu::for_each_row(rows, classes,
                    [&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
                      const cpu::RowTarget row_target = cpu::target_of(target, row, s.ignore_index);
                      cpu::RowTask task = common;
                      task.gradient = cpu::gradient_row(gradient, row);
                      if (row_target.ignored) {
                        if (void* data = task.gradient.data)
                          std::memset(data, 0, classes * gradient.itemsize());
                        store(row, cpu::RowResult{}, row_target);
                        return;
                      }
                      task.target = row_target.value;
                      task.student = cpu::logits_row(student, row);
                      task.teacher = cpu::logits_row(teacher, row);
                      store(row, run_row(task, executor, scratch), row_target);
                    });
}

void forward_cpu(const LossOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                 const ForwardTensors& made) {
  const auto& [loss, gradient, backward_scale] = made;
  const double weight = cpu::reduction_weight(s.reduction, counted_rows(kLoss, student, target, s));
  const GradScale scale = grad_scale(weight, weights_of(s), student.scalar_type() == at::kHalf);
  std::vector<double> losses(student.size(0));
  for_rows(
      student, teacher, target, s, scale.forward, gradient,
      [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget) { losses[row] = r.loss; });
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "gkd_forward_cpu", [&] {
    scalar_t* out = loss.mutable_data_ptr<scalar_t>();
    if (s.reduction == "none") {
      std::copy(losses.begin(), losses.end(), out);
    } else {
      *out = static_cast<scalar_t>(weight * std::accumulate(losses.begin(), losses.end(), 0.0));
    }
    *backward_scale.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(scale.backward);
  });
}

void group_cpu(const LossOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
               const GroupTensors& made) {
  counted_rows(kGroup, student, target, s);
  const auto& [size, p, q, cut, primary, binary, secondary, mask] = made;
  const at::Tensor columns[6] = {p, q, cut, primary, binary, secondary};
  const at::Tensor mask_rows = mask.numel() > 0 ? mask.view(student.sizes()) : mask;
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "gkd_group_cpu", [&] {
    scalar_t* out[6];
    for (int k = 0; k < 6; ++k) out[k] = columns[k].mutable_data_ptr<scalar_t>();
    std::int64_t* sizes = size.mutable_data_ptr<std::int64_t>();
    const at::Tensor& rank = s.rank_by == "student" ? student : teacher;
    for_rows(student, teacher, target, s, 1.0, /*gradient=*/{},
             [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget row_target) {
               const double nan = std::numeric_limits<double>::quiet_NaN();
               const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                                         r.primary,   r.summary.binary, r.secondary};
               for (int k = 0; k < 6; ++k) {
                 out[k][row] = static_cast<scalar_t>(row_target.ignored ? nan : values[k]);
               }
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
  const cpu::ScaleFunction scale = cpu::kernels().scale;
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

std::string cpu_capability() { return cpu::kernels().name; }

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) { register_ops<forward_cpu, group_cpu, scale_cpu>(m); }

// It has no tensor to dispatch on.
TORCH_LIBRARY_IMPL(gkd, CatchAll, m) { m.impl("_cpu_capability", &cpu_capability); }

}  // namespace gkd
