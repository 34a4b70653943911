// CPU backend: rows in parallel, each converted into float or double once, then handed to row.cpp.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/row.h"
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

/// A row as contiguous `T`: the tensor's own memory where it is that already, else a copy.
template <class T>
const T* load_row(const at::Tensor& t, std::int64_t row, std::vector<T>* buffer) {
  const std::int64_t classes = t.size(1), stride = t.stride(1);
  const T* direct = nullptr;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "gkd_load_row", [&] {
    const scalar_t* from = t.const_data_ptr<scalar_t>() + row * t.stride(0);
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (stride == 1) {
        direct = from;
        return;
      }
    }
    buffer->resize(classes);
    T* to = buffer->data();
    if (stride == 1) {
      at::vec::convert(from, to, classes);
    } else {
      for (std::int64_t j = 0; j < classes; ++j) to[j] = static_cast<T>(from[j * stride]);
    }
  });
  return direct ? direct : buffer->data();
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

/// Runs every row; `done(row, result, ignored)` stores what the caller wants of it.
template <class T, class Done>
void for_rows(const char* name, const at::Tensor& student, const at::Tensor& teacher,
              const OptionalTensor& target, const Settings& s, double gradient_scale,
              at::Tensor* gradient, Done done) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const cpu::Selection how{s.threshold, s.group_size.value_or(-1), s.rank_by == "student",
                           s.method == "sort"};
  const Weights weights = s.weights();
  cpu::RowFunction<T> run;
  if constexpr (std::is_same_v<T, float>)
    run = cpu::kernels().single;
  else
    run = cpu::kernels().wide;
  at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
    cpu::Scratch scratch;
    std::vector<T> student_row, teacher_row, gradient_row;
    for (std::int64_t row = begin; row < end; ++row) {
      bool ignored;
      const std::int64_t t = target_of(name, target, row, classes, s.ignore_index, &ignored);
      if (ignored) {
        if (gradient) gradient->select(0, row).zero_();
        done(row, cpu::RowResult{}, true, t);
        continue;
      }
      const T* sp = load_row(student, row, &student_row);
      const T* up = load_row(teacher, row, &teacher_row);
      T* gp = nullptr;
      const bool direct = gradient && gradient->scalar_type() == c10::CppTypeToScalarType<T>::value;
      if (direct) gp = gradient->mutable_data_ptr<T>() + row * classes;
      if (gradient && !direct) {
        gradient_row.resize(classes);
        gp = gradient_row.data();
      }
      done(row, run(sp, up, classes, t, how, weights, static_cast<T>(gradient_scale), gp, &scratch),
           false, t);
      if (gradient && !direct) {
        AT_DISPATCH_FLOATING_TYPES_AND2(
            at::kHalf, at::kBFloat16, gradient->scalar_type(), "gkd_store_row", [&] {
              at::vec::convert(gp, gradient->mutable_data_ptr<scalar_t>() + row * classes, classes);
            });
      }
    }
  });
}

ForwardTensors forward_cpu(const at::Tensor& student, const at::Tensor& teacher,
                           const OptionalTensor& target, const Settings& s,
                           std::string_view reduction, bool need_grad) {
  const at::Tensor su = student.resolve_neg(), te = teacher.resolve_neg();
  const std::int64_t counted = counted_rows("gkd::loss", student, target, s);
  const double weight = reduction == "mean" ? 1.0 / std::max<std::int64_t>(counted, 1) : 1.0;
  const double scale = stored_scale(weight) * gradient_headroom(student.scalar_type(), s.weights());
  const auto options = student.options().dtype(compute_dtype(student, teacher));
  at::Tensor gradient = need_grad ? at::empty({student.size(0), student.size(1)}, student.options())
                                  : at::empty({0}, student.options());
  std::vector<double> losses(student.size(0));
  at::Tensor loss =
      reduction == "none" ? at::empty({student.size(0)}, options) : at::empty({}, options);
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "gkd_forward_cpu", [&] {
    for_rows<scalar_t>("gkd::loss", su, te, target, s, scale, need_grad ? &gradient : nullptr,
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
    for_rows<scalar_t>(
        "gkd::group", su, te, target, s, 1.0, nullptr,
        [&](std::int64_t row, const cpu::RowResult& r, bool ignored, std::int64_t t) {
          const double nan = std::numeric_limits<double>::quiet_NaN();
          const double values[6] = {r.summary.p, r.summary.q,      r.cut,
                                    r.primary,   r.summary.binary, r.secondary};
          for (int k = 0; k < 6; ++k) {
            out[k][row] = static_cast<scalar_t>(ignored ? nan : values[k]);
          }
          sizes[row] = r.size;
          if (!return_mask) return;
          std::vector<scalar_t> buffer;
          const scalar_t* values_row = load_row(rank, row, &buffer);
          bool* to = mask.mutable_data_ptr<bool>() + row * classes;
          for (std::int64_t j = 0; j < classes; ++j) {
            to[j] = !ignored && (values_row[j] >= static_cast<scalar_t>(r.cut) || j == t);
          }
        });
  });
  return {size, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], mask};
}

at::Tensor scale_cpu(const at::Tensor& gradient, const at::Tensor& grad_output,
                     const at::Tensor& weight, double factor) {
  const std::int64_t rows = gradient.size(0), classes = gradient.size(1);
  const at::Tensor from = gradient.contiguous();
  const double by = later_scale(weight.item<double>()) * factor;
  const at::Tensor scales = (grad_output.to(at::kDouble) * by).expand({rows}).contiguous();
  const double* scale = scales.const_data_ptr<double>();
  at::Tensor out = at::empty({rows, classes}, gradient.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, gradient.scalar_type(), "gkd_scale_cpu", [&] {
        using Wide = at::opmath_type<scalar_t>;
        const scalar_t* in = from.const_data_ptr<scalar_t>();
        scalar_t* to = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t row = begin; row < end; ++row) {
            const Wide row_scale = static_cast<Wide>(scale[row]);
            for (std::int64_t j = row * classes; j < (row + 1) * classes; ++j) {
              to[j] = static_cast<scalar_t>(static_cast<Wide>(in[j]) * row_scale);
            }
          }
        });
      });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  m.impl("_forward", &checked_forward<forward_cpu>);
  m.impl("_scale", &scale_cpu);
  m.impl("group", &checked_group<group_cpu>);
}

}  // namespace gkd
