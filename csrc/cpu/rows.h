// A batch on the CPU: torch's tensors as rows, and rows handed out to threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "cpu/parallel.h"
#include "cpu/row.h"
#include "ops.h"

namespace gkd::cpu {

inline LogitsRow source(const at::Tensor& t, std::int64_t row) {
  const char* data = static_cast<const char*>(t.const_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};
}

inline GradientRow sink(const at::Tensor& t, std::int64_t row) {
  char* data = static_cast<char*>(t.mutable_data_ptr());
  return {data + row * t.stride(0) * t.element_size(), dtype_of(t)};
}

/// A row's target, unchecked; -1 where there is none.
struct RowTarget {
  std::int64_t value = -1;
  bool ignored = false;
};
inline RowTarget target_of(const OptionalTensor& target, std::int64_t row,
                           std::int64_t ignore_index) {
  if (!target) return {};
  const std::int64_t at = row * target->stride(0);
  const std::int64_t value = target->scalar_type() == at::kLong
                                 ? target->const_data_ptr<std::int64_t>()[at]
                                 : target->const_data_ptr<std::int32_t>()[at];
  return value == ignore_index ? RowTarget{-1, true} : RowTarget{value, false};
}

/// The factor of the reduction.
inline double reduction_weight(std::string_view reduction, std::int64_t counted) {
  return reduction == "mean" ? 1.0 / static_cast<double>(counted > 0 ? counted : 1) : 1.0;
}

/// Whether threads share each row rather than take rows apart: where rows are too few to go round.
inline bool share_rows(std::int64_t rows, std::int64_t classes) {
  const std::int64_t threads = at::get_num_threads();
  return threads > 1 && classes > 2 * kSegment && rows < 4 * threads && rows % threads != 0;
}

/// Calls body(row, executor, scratch) for every row: threads take rows, or share each.
template <class Body>
void each_row(std::int64_t rows, std::int64_t classes, Body body) {
  if (share_rows(rows, classes)) {
    const Executor together = [](std::int64_t n, const auto& part) {
      parallel_for_dynamic(n, [&](auto next) {
        for (std::int64_t k = next(); k < n; k = next()) part(k);
      });
    };
    Scratch scratch;
    for (std::int64_t row = 0; row < rows; ++row) body(row, together, &scratch);
    return;
  }
  parallel_for_dynamic(rows, [&](auto next) {
    const Executor alone = [](std::int64_t n, const auto& part) {
      for (std::int64_t k = 0; k < n; ++k) part(k);
    };
    Scratch scratch;
    for (std::int64_t row = next(); row < rows; row = next()) body(row, alone, &scratch);
  });
}

}  // namespace gkd::cpu
