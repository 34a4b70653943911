// CPU backend: hands rows to row.cpp, in parallel or each shared among the threads, and reduces.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/rows.h"

namespace gkd {
namespace {

/// Rows that count, after a look at every target: an error names the first bad row.
std::int64_t counted_rows(const char* name, const at::Tensor& student, const OptionalTensor& target,
                          const LossOptions& s) {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < student.size(0); ++row) {
    const cpu::RowTarget own = cpu::target_of(target, row, s.ignore_index);
    if (target && !own.ignored) check_target_value(name, own.value, student.size(1), row);
    counted += !own.ignored;
  }
  return counted;
}

/// Runs every row; `done(row, result, target)` stores what the caller wants of it.
template <class Done>
void for_rows(const at::Tensor& student, const at::Tensor& teacher, const OptionalTensor& target,
              const LossOptions& s, double gradient_scale, at::Tensor* gradient, Done done) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const bool wide = compute_dtype(student, teacher) == at::kDouble;
  const cpu::RowFunction run = wide ? cpu::kernels().wide : cpu::kernels().single;
  cpu::RowTask common;
  common.classes = classes;
  common.gradient_scale = gradient_scale;
  common.how = selection_of(s);
  common.weights = weights_of(s);
  cpu::each_row(rows, classes,
                [&](std::int64_t row, const cpu::Executor& each, cpu::Scratch* scratch) {
                  const cpu::RowTarget own = cpu::target_of(target, row, s.ignore_index);
                  if (own.ignored) {
                    if (gradient) gradient->select(0, row).zero_();
                    done(row, cpu::RowResult{}, own);
                    return;
                  }
                  cpu::RowTask task = common;
                  task.target = own.value;
                  task.student = cpu::source(student, row);
                  task.teacher = cpu::source(teacher, row);
                  if (gradient) task.gradient = cpu::sink(*gradient, row);
                  done(row, run(task, each, scratch), own);
                });
}

ForwardTensors forward_cpu(const LossOptions& s, Ref student, Ref teacher,
                           const OptionalTensor& target, bool need_grad) {
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const std::int64_t counted = counted_rows("gkd::loss", student, target, s);
  const double weight = cpu::reduction_weight(s.reduction, counted);
  const GradScale scale = grad_scale(weight, weights_of(s), student.scalar_type() == at::kHalf);
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor gradient = need_grad ? at::empty({student.size(0), student.size(1)}, student.options())
                                  : at::empty({0}, student.options());
  std::vector<double> losses(student.size(0));
  at::Tensor loss =
      s.reduction == "none" ? at::empty({student.size(0)}, options) : at::empty({}, options);
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "gkd_forward_cpu", [&] {
    for_rows(
        su, te, target, s, scale.forward, need_grad ? &gradient : nullptr,
        [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget) { losses[row] = r.loss; });
    scalar_t* out = loss.mutable_data_ptr<scalar_t>();
    if (s.reduction == "none") {
      std::copy(losses.begin(), losses.end(), out);
    } else {
      *out = static_cast<scalar_t>(weight * std::accumulate(losses.begin(), losses.end(), 0.0));
    }
  });
  return {loss, gradient, at::full({}, scale.backward, options)};
}

GroupTensors group_cpu(const LossOptions& s, Ref student, Ref teacher, const OptionalTensor& target,
                       bool return_mask) {
  counted_rows("gkd::group", student, target, s);
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor size = at::empty({rows}, options.dtype(at::kLong));
  at::Tensor columns[6];  // apart, since an operator's outputs must not alias
  for (at::Tensor& column : columns) column = at::empty({rows}, options);
  at::Tensor mask = at::empty({0}, options.dtype(at::kBool));
  if (return_mask) mask = at::empty({rows, classes}, options.dtype(at::kBool));
  AT_DISPATCH_FLOATING_TYPES(columns[0].scalar_type(), "gkd_group_cpu", [&] {
    scalar_t* out[6];
    for (int k = 0; k < 6; ++k) out[k] = columns[k].mutable_data_ptr<scalar_t>();
    std::int64_t* sizes = size.mutable_data_ptr<std::int64_t>();
    const at::Tensor& rank = s.rank_by == "student" ? su : te;
    for_rows(su, te, target, s, 1.0, nullptr,
             [&](std::int64_t row, const cpu::RowResult& r, cpu::RowTarget own) {
               const double nan = std::numeric_limits<double>::quiet_NaN();
               const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                                         r.primary,   r.summary.binary, r.secondary};
               for (int k = 0; k < 6; ++k) {
                 out[k][row] = static_cast<scalar_t>(own.ignored ? nan : values[k]);
               }
               sizes[row] = r.size;
               if (!return_mask) return;
               at::Tensor to = mask.select(0, row);
               if (own.ignored || std::isnan(r.cut)) {
                 to.zero_();
                 return;
               }
               // As the row was compared: float's lowest cut is -inf to 16 bits.
               at::ge_out(to, rank.select(0, row).to(columns[0].scalar_type()), r.cut);
               if (own.value >= 0) mask.mutable_data_ptr<bool>()[row * classes + own.value] = true;
             });
  });
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

/// to = from * grad_output * grad_scale, both contiguous; they may be one.
void scale_rows(Ref from, Ref to_tensor, Ref grad_output, Ref grad_scale) {
  const std::int64_t rows = from.size(0), classes = from.size(1);
  const at::Tensor factors = grad_output.to(at::kDouble) * grad_scale.item<double>();
  const std::int64_t stride = factors.dim() == 0 ? 0 : factors.stride(0);
  const double* factor = factors.const_data_ptr<double>();
  if (rows == 0) return;
  const char* in = static_cast<const char*>(from.const_data_ptr());
  char* to = static_cast<char*>(to_tensor.mutable_data_ptr());
  const cpu::ScaleFunction run = cpu::kernels().scale;
  // Pieces of rows, so that one row too is shared.
  const std::int64_t pieces = (classes + cpu::kSegment - 1) / cpu::kSegment;
  parallel_for_dynamic(rows * pieces, [&](auto next) {
    for (std::int64_t k = next(); k < rows * pieces; k = next()) {
      const std::int64_t row = k / pieces, first = k % pieces * cpu::kSegment;
      const double by = factor[row * stride];
      if (in == to && by == 1) continue;  // it is there already
      const std::int64_t at = (row * classes + first) * from.element_size();
      run(in + at, to + at, dtype_of(from), std::min(cpu::kSegment, classes - first), by);
    }
  });
}

at::Tensor scale_cpu(Ref gradient, Ref grad_output, Ref grad_scale) {
  at::Tensor out = at::empty(gradient.sizes(), gradient.options(), at::MemoryFormat::Contiguous);
  scale_rows(gradient.contiguous(), out, grad_output, grad_scale);
  return out;
}

void scale_in_place_cpu(Ref gradient, Ref grad_output, Ref grad_scale) {
  scale_rows(gradient, gradient, grad_output, grad_scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_ops<forward_cpu, group_cpu, scale_cpu>(m);
  m.impl("_scale_", &scale_in_place_cpu);
}

}  // namespace gkd
