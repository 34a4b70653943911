// Torch's tensors as rows of the CPU kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "cpu/kernels.h"
#include "ops.h"

namespace gkd::cpu {

inline LogitsRow logits_row(const at::Tensor& t, std::int64_t row) {
  const char* data = static_cast<const char*>(t.const_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};
}

/// Of a contiguous gradient; no row of [0], where none is asked for.
inline GradientRow gradient_row(const at::Tensor& t, std::int64_t row) {
  if (t.numel() == 0) return {};
  char* data = static_cast<char*>(t.mutable_data_ptr());
  return {data + row * t.size(-1) * t.element_size(), dtype_of(t)};
}

/// A row's target, unchecked; -1 where there is none.
struct RowTarget {
  std::int64_t value = -1;
  bool ignored = false;
};
inline RowTarget target_of(const OptionalTensor& target, std::int64_t row,
                           std::int64_t ignore_index) {
  if (!target) return {};
  const std::int64_t offset = row * target->stride(0);
  const std::int64_t value = target->scalar_type() == at::kLong
                                 ? target->const_data_ptr<std::int64_t>()[offset]
                                 : target->const_data_ptr<std::int32_t>()[offset];
  return value == ignore_index ? RowTarget{-1, true} : RowTarget{value, false};
}

/// The factor of the reduction.
inline double reduction_weight(std::string_view reduction, std::int64_t counted_rows) {
  return reduction == "mean" ? 1.0 / static_cast<double>(counted_rows > 0 ? counted_rows : 1) : 1.0;
}

}  // namespace gkd::cpu
