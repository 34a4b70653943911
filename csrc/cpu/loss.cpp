// CPU backend: rows in parallel, each converted into float or double once, then handed to row.cpp.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <torch/library.h>

#include <limits>
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
  TORCH_CHECK_INDEX(value >= 0 && value < classes, name, ": target ", value,
                    " is out of bounds for ", classes, " classes (row ", row, ")");
  return value;
}

/// Runs every row; `done(row, result, ignored)` stores what the caller wants of it.
template <class T, class Done>
void for_rows(const char* name, const at::Tensor& student, const at::Tensor& teacher,
              const OptionalTensor& target, const Settings& s, at::Tensor* gradient, Done done) {
  const std::int64_t rows = student.size(0), classes = student.size(1);
  const cpu::Selection how{s.threshold, s.group_size.value_or(-1), s.rank_by == "student"};
  const Weights weights = s.weights();
  const T headroom = static_cast<T>(gradient_headroom(student.scalar_type(), weights));
  cpu::RowFunction<T> run;
  if constexpr (std::is_same_v<T, float>) run = cpu::kernels().single;
  else run = cpu::kernels().wide;
  for (std::int64_t row = 0; row < rows; ++row) {  // before any work, so that one row is named
    bool ignored;
    target_of(name, target, row, classes, s.ignore_index, &ignored);
  }
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
      done(row, run(sp, up, classes, t, how, weights, headroom, gp, &scratch), false, t);
      if (gradient && !direct) {
        AT_DISPATCH_FLOATING_TYPES_AND2(
            at::kHalf, at::kBFloat16, gradient->scalar_type(), "gkd_store_row", [&] {
              at::vec::convert(gp, gradient->mutable_data_ptr<scalar_t>() + row * classes, classes);
            });
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(
    const at::Tensor& student, const at::Tensor& teacher, const OptionalTensor& target,
    double threshold, std::optional<std::int64_t> group_size, double temperature,
    double primary_weight, double binary_weight, double secondary_weight, bool coupled,
    c10::string_view rank_by, std::int64_t ignore_index, bool need_grad) {
  const Settings s{threshold,        group_size, temperature, primary_weight, binary_weight,
                   secondary_weight, coupled,    rank_by,     ignore_index};
  check_inputs("gkd::loss", student, teacher, target, s);
  const at::Tensor su = student.resolve_conj().resolve_neg(), te = teacher.resolve_neg();
  at::Tensor loss =
      at::empty({student.size(0)}, student.options().dtype(compute_dtype(student, teacher)));
  at::Tensor gradient = at::empty({0}, student.options());
  if (need_grad) gradient = at::empty({student.size(0), student.size(1)}, student.options());
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "gkd_forward_cpu", [&] {
    scalar_t* out = loss.mutable_data_ptr<scalar_t>();
    for_rows<scalar_t>("gkd::loss", su, te, target, s, need_grad ? &gradient : nullptr,
                       [&](std::int64_t row, const cpu::RowResult& r, bool, std::int64_t) {
                         out[row] = static_cast<scalar_t>(r.loss);
                       });
  });
  return {loss, gradient};
}

GroupTensors group_cpu(const at::Tensor& student, const at::Tensor& teacher,
                       const OptionalTensor& target, double threshold,
                       std::optional<std::int64_t> group_size, double temperature,
                       double primary_weight, double binary_weight, double secondary_weight,
                       bool coupled, c10::string_view rank_by, std::int64_t ignore_index,
                       bool return_mask) {
  const Settings s{threshold,        group_size, temperature, primary_weight, binary_weight,
                   secondary_weight, coupled,    rank_by,     ignore_index};
  check_inputs("gkd::group", student, teacher, target, s);
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
        "gkd::group", su, te, target, s, nullptr,
        [&](std::int64_t row, const cpu::RowResult& r, bool ignored, std::int64_t t) {
          const double nan = std::numeric_limits<double>::quiet_NaN();
          const double values[6] = {r.summary.p, r.summary.q,       r.cut,
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
  return {size,       columns[0], columns[1], columns[2],
          columns[3], columns[4], columns[5], mask};
}

at::Tensor scale_cpu(const at::Tensor& gradient, const at::Tensor& row_scale, double factor) {
  const std::int64_t rows = gradient.size(0), classes = gradient.size(1);
  const at::Tensor from = gradient.contiguous();
  const at::Tensor scales = row_scale.contiguous();
  at::Tensor out = at::empty({rows, classes}, gradient.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, gradient.scalar_type(), "gkd_scale_cpu", [&] {
        using Wide = at::opmath_type<scalar_t>;
        const scalar_t* in = from.const_data_ptr<scalar_t>();
        scalar_t* to = out.mutable_data_ptr<scalar_t>();
        const at::Tensor wide_scales = scales.to(c10::CppTypeToScalarType<Wide>::value);
        const Wide* scale = wide_scales.const_data_ptr<Wide>();
        at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t row = begin; row < end; ++row) {
            const Wide by = scale[row] * static_cast<Wide>(factor);
            for (std::int64_t j = row * classes; j < (row + 1) * classes; ++j) {
              to[j] = static_cast<scalar_t>(static_cast<Wide>(in[j]) * by);
            }
          }
        });
      });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  m.impl("_forward", &forward_cpu);
  m.impl("_scale", &scale_cpu);
  m.impl("group", &group_cpu);
}

}  // namespace gkd
