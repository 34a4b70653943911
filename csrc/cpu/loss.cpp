// CPU backend: hands rows to row.cpp, in parallel or each shared among the threads, and reduces.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/row.h"
#include "cpu/turns.h"
#include "ops.h"

namespace gkd {
namespace cpu {

const Kernels& kernels() {
  static const Kernels best = [] {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return AVX512::kernels();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2::kernels();
#endif
    return DEFAULT::kernels();
  }();
  return best;
}

}  // namespace cpu

namespace {

cpu::Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return cpu::Dtype::kHalf;
    case at::kBFloat16:
      return cpu::Dtype::kBFloat16;
    case at::kFloat:
      return cpu::Dtype::kFloat;
    default:
      return cpu::Dtype::kDouble;
  }
}

cpu::Source source(const at::Tensor& t, std::int64_t row) {
  const char* data = static_cast<const char*>(t.const_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};
}

cpu::Sink sink(const at::Tensor& t, std::int64_t row) {
  char* data = static_cast<char*>(t.mutable_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), dtype_of(t)};
}

/// The target of a row, or a message: -1 where there is none.
std::int64_t target_of(const char* name, const OptionalTensor& target, std::int64_t row,
                       std::int64_t classes, std::int64_t ignore_index, bool* ignored) {
  *ignored = false;
  if (!target) return -1;
  const std::int64_t at = row * target->stride(0);
  const std::int64_t value = target->scalar_type() == at::kLong
                                 ? target->const_data_ptr<std::int64_t>()[at]
                                 : target->const_data_ptr<std::int32_t>()[at];
  *ignored = value == ignore_index;
  if (*ignored) return -1;
  check_target_value(name, value, classes, row);
  return value;
}

/// Rows that count, after a look at every target: an error names the first bad row.
std::int64_t counted_rows(const char* name, const at::Tensor& student, const OptionalTensor& target,
                          const Settings& s) {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < student.size(0); ++row) {
    bool ignored;
    target_of(name, target, row, student.size(1), s.ignore_index, &ignored);
    counted += !ignored;
  }
  return counted;
}

/// Whether threads share each row rather than take rows apart: where rows are too few to go round.
bool share_rows(std::int64_t rows, std::int64_t classes) {
  const std::int64_t threads = at::get_num_threads();
  return threads > 1 && classes > 2 * cpu::kSegment && rows < 4 * threads && rows % threads != 0;
}

/// Runs every row; `done(row, result, ignored)` stores what the caller wants of it.
template <class Done>
void for_rows(const char* name, const at::Tensor& student, const at::Tensor& teacher,
              const OptionalTensor& target, const Settings& s, double gradient_scale,
              at::Tensor* gradient, Done done) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const bool wide = compute_dtype(student, teacher) == at::kDouble;
  const cpu::RowFunction run = wide ? cpu::kernels().wide : cpu::kernels().single;
  cpu::RowTask common;
  common.classes = classes;
  common.gradient_scale = gradient_scale;
  common.how = {s.threshold, s.group_size.value_or(-1), s.rank_by == "student", s.method == "sort"};
  common.weights = s.weights();
  auto one_row = [&](std::int64_t row, const cpu::Executor& each, cpu::Scratch* scratch) {
    bool ignored;
    cpu::RowTask task = common;
    task.target = target_of(name, target, row, classes, s.ignore_index, &ignored);
    if (ignored) {
      if (gradient) gradient->select(0, row).zero_();
      done(row, cpu::RowResult{}, true, task.target);
      return;
    }
    task.student = source(student, row);
    task.teacher = source(teacher, row);
    if (gradient) task.gradient = sink(*gradient, row);
    done(row, run(task, each, scratch), false, task.target);
  };
  if (share_rows(rows, classes)) {
    const cpu::Executor together = [](std::int64_t n, const auto& body) {
      take_turns(n, [&](auto next) {
        for (std::int64_t k = next(); k < n; k = next()) body(k);
      });
    };
    cpu::Scratch scratch;
    for (std::int64_t row = 0; row < rows; ++row) one_row(row, together, &scratch);
    return;
  }
  take_turns(rows, [&](auto next) {
    const cpu::Executor alone = [](std::int64_t n, const auto& body) {
      for (std::int64_t k = 0; k < n; ++k) body(k);
    };
    cpu::Scratch scratch;
    for (std::int64_t row = next(); row < rows; row = next()) one_row(row, alone, &scratch);
  });
}

ForwardTensors forward_cpu(const at::Tensor& student, const at::Tensor& teacher,
                           const OptionalTensor& target, const Settings& s,
                           std::string_view reduction, bool need_grad) {
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const std::int64_t counted = counted_rows("gkd::loss", student, target, s);
  const double weight = reduction == "mean" ? 1.0 / std::max<std::int64_t>(counted, 1) : 1.0;
  const double scale = stored_scale(weight, student.scalar_type() == at::kHalf) *
                       gradient_headroom(student.scalar_type(), s.weights());
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor gradient = need_grad ? at::empty({student.size(0), student.size(1)}, student.options())
                                  : at::empty({0}, student.options());
  std::vector<double> losses(student.size(0));
  at::Tensor loss =
      reduction == "none" ? at::empty({student.size(0)}, options) : at::empty({}, options);
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "gkd_forward_cpu", [&] {
    for_rows("gkd::loss", su, te, target, s, scale, need_grad ? &gradient : nullptr,
             [&](std::int64_t row, const cpu::RowResult& r, bool, std::int64_t) {
               losses[row] = r.loss;
             });
    scalar_t* out = loss.mutable_data_ptr<scalar_t>();
    if (reduction == "none") {
      std::copy(losses.begin(), losses.end(), out);
    } else {
      *out = static_cast<scalar_t>(weight * std::accumulate(losses.begin(), losses.end(), 0.0));
    }
  });
  return {loss, gradient, at::full({}, weight, options)};
}

GroupTensors group_cpu(const at::Tensor& student, const at::Tensor& teacher,
                       const OptionalTensor& target, const Settings& s, bool return_mask) {
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
    for_rows("gkd::group", su, te, target, s, 1.0, nullptr,
             [&](std::int64_t row, const cpu::RowResult& r, bool ignored, std::int64_t t) {
               const double nan = std::numeric_limits<double>::quiet_NaN();
               const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                                         r.primary,   r.summary.binary, r.secondary};
               for (int k = 0; k < 6; ++k) {
                 out[k][row] = static_cast<scalar_t>(ignored ? nan : values[k]);
               }
               sizes[row] = r.size;
               if (!return_mask) return;
               at::Tensor to = mask.select(0, row);
               if (ignored || std::isnan(r.cut)) {
                 to.zero_();
                 return;
               }
               at::ge_out(to, rank.select(0, row), r.cut);
               if (t >= 0) mask.mutable_data_ptr<bool>()[row * classes + t] = true;
             });
  });
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

/// to = from * scale, both contiguous; they may be one.
void scale_rows(const at::Tensor& from, const at::Tensor& to_tensor, const at::Tensor& grad_output,
                const at::Tensor& weight, double factor) {
  const std::int64_t rows = from.size(0), classes = from.size(1);
  const double by = later_scale(weight.item<double>(), from.scalar_type() == at::kHalf) * factor;
  const at::Tensor scales = (grad_output.to(at::kDouble) * by).expand({rows}).contiguous();
  const double* scale = scales.const_data_ptr<double>();
  if (rows == 0) return;
  const char* in = static_cast<const char*>(from.const_data_ptr());
  char* to = static_cast<char*>(to_tensor.mutable_data_ptr());
  const cpu::ScaleFunction run = cpu::kernels().scale;
  // Pieces of rows, so that one row too is shared.
  const std::int64_t pieces = (classes + cpu::kSegment - 1) / cpu::kSegment;
  take_turns(rows * pieces, [&](auto next) {
    for (std::int64_t k = next(); k < rows * pieces; k = next()) {
      const std::int64_t row = k / pieces, first = k % pieces * cpu::kSegment;
      if (in == to && scale[row] == 1) continue;  // it is there already
      const std::int64_t at = (row * classes + first) * from.element_size();
      run(in + at, to + at, dtype_of(from), std::min(cpu::kSegment, classes - first), scale[row]);
    }
  });
}

at::Tensor scale_cpu(const at::Tensor& gradient, const at::Tensor& grad_output,
                     const at::Tensor& weight, double factor) {
  at::Tensor out = at::empty(gradient.sizes(), gradient.options(), at::MemoryFormat::Contiguous);
  scale_rows(gradient.contiguous(), out, grad_output, weight, factor);
  return out;
}

void scale_in_place_cpu(const at::Tensor& gradient, const at::Tensor& grad_output,
                        const at::Tensor& weight, double factor) {
  TORCH_INTERNAL_ASSERT(gradient.is_contiguous());  // as _forward made it
  scale_rows(gradient, gradient, grad_output, weight, factor);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  m.impl("_forward", &checked_forward<forward_cpu>);
  m.impl("_scale", &scale_cpu);
  m.impl("_scale_", &scale_in_place_cpu);
  m.impl("group", &checked_group<group_cpu>);
}

}  // namespace gkd
