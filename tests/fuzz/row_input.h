// A row of logits as the kernels are given it: elements in memory of their own, and settings.
#pragma once

#include <algorithm>
#include <memory>

#include "bytes.h"
#include "cpu/kernels.h"

namespace gkd::fuzz {

using cpu::RowTask;

/// Elements `stride` apart, in memory that ends with the last of them.
struct Elements {
  Dtype dtype;
  std::int64_t stride;
  std::unique_ptr<char[]> data;

  Elements(Dtype dtype, std::int64_t stride, std::int64_t count)
      : dtype(dtype),
        stride(stride),
        data(new char[element_size(dtype) * (stride * (count - 1) + 1)]) {
    std::fill_n(data.get(), element_size(dtype) * (stride * (count - 1) + 1), '\x7f');
  }
  char* at(std::int64_t j) const { return data.get() + element_size(dtype) * stride * j; }
  gkd::cpu::LogitsRow logits_row() const { return {data.get(), stride, dtype}; }

  void set(std::int64_t j, double x) {
    if (dtype == Dtype::kDouble) {
      std::memcpy(at(j), &x, 8);
    } else {
      // Any number cut to 16 bits is as good as any other here: nothing is compared with it.
      const float rounded = std::abs(x) <= std::numeric_limits<float>::max() || !std::isfinite(x)
                                ? static_cast<float>(x)
                                : std::copysign(std::numeric_limits<float>::max(), x);
      std::uint32_t bits;
      std::memcpy(&bits, &rounded, 4);
      if (dtype == Dtype::kFloat) {
        std::memcpy(at(j), &bits, 4);
      } else {
        const std::uint16_t high = static_cast<std::uint16_t>(bits >> 16);
        std::memcpy(at(j), &high, 2);
      }
    }
  }
  double get(std::int64_t j) const {
    if (dtype == Dtype::kDouble) {
      double x;
      std::memcpy(&x, at(j), 8);
      return x;
    }
    if (dtype == Dtype::kFloat) {
      float x;
      std::memcpy(&x, at(j), 4);
      return x;
    }
    std::uint16_t bits;
    std::memcpy(&bits, at(j), 2);
    if (dtype == Dtype::kBFloat16) {
      const std::uint32_t float_bits = static_cast<std::uint32_t>(bits) << 16;
      float x;
      std::memcpy(&x, &float_bits, 4);
      return x;
    }
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31) return sign * (fraction ? std::nan("") : HUGE_VAL);
    return sign * std::ldexp(exponent ? 1024 + fraction : fraction, std::max(exponent, 1) - 25);
  }
};

/// Fills a row; whether it has NaN or +inf, or no finite logit, and so makes the row NaN.
inline bool draw(Bytes* bytes, std::int64_t classes, Elements* row) {
  Logits logits(bytes);
  for (std::int64_t j = 0; j < classes; ++j) row->set(j, logits.next());
  double high = -HUGE_VAL;
  bool invalid = false;
  for (std::int64_t j = 0; j < classes; ++j) {
    const double x = row->get(j);
    invalid |= !(x < HUGE_VAL);
    high = std::max(high, x);
  }
  return invalid || !std::isfinite(high);
}

/// Any settings that the checks let through.
inline RowTask settings(Bytes* bytes, std::int64_t classes) {
  RowTask task;
  task.classes = classes;
  task.target = bytes->flag() ? bytes->pick(classes) : -1;
  task.gradient_scale = bytes->of({1.0, 0.25, 1.0 / 3, 1024.0});
  task.selection.threshold = bytes->of({0.93, 1.0, 0.5, 1e-300, 1 - 0x1p-53, 0.999});
  task.selection.group_size = bytes->flag() ? -1 : bytes->pick(classes + 2);
  task.selection.by_student = bytes->flag();
  task.selection.sort = bytes->byte() % 8 == 0;
  task.weights.temperature = bytes->of({4.0, 1.0, 0.1, 1e-6, 1e6, 2.7});
  task.weights.primary = bytes->of({8.0, 0.0, -1.0, 1e30});
  task.weights.binary = bytes->of({1.0, 0.0, -3.0, 1e30});
  task.weights.secondary = bytes->of({0.0, 1.0, -2.0, 1e-30});
  task.weights.coupled = bytes->flag();
  return task;
}

}  // namespace gkd::fuzz
