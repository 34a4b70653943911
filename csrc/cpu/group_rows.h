// A grouped teacher's tensors as rows of the CPU kernels.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/tensors.h"
#include "sparse.h"

namespace gkd::cpu {

/// The arrays of a group, in compressed sparse row form. Nothing is checked.
struct GroupRows {
  const TeacherGroup tensors;                   ///< contiguous
  const std::optional<std::int64_t> first_row;  ///< GroupPart::first_row
  const std::int64_t* indptr = tensors.indptr.const_data_ptr<std::int64_t>();
  const std::int32_t* indices = tensors.indices.const_data_ptr<std::int32_t>();

  explicit GroupRows(const TeacherGroup& given, std::optional<std::int64_t> first_row = {})
      : tensors{given.indptr.contiguous(), given.indices.contiguous(), given.logits.contiguous(),
                given.rest.contiguous()},
        first_row(first_row) {}

  std::int64_t size(std::int64_t row) const { return indptr[row + 1] - indptr[row]; }
  const std::int32_t* begin(std::int64_t row) const { return indices + indptr[row]; }
  /// A row's number for messages.
  std::int64_t number(std::int64_t row) const { return first_row.value_or(0) + row; }
  double rest(std::int64_t row) const {
    return tensors.rest.scalar_type() == at::kDouble ? tensors.rest.const_data_ptr<double>()[row]
                                                     : tensors.rest.const_data_ptr<float>()[row];
  }
  LogitsRow logits(std::int64_t row) const {
    const char* data = static_cast<const char*>(tensors.logits.const_data_ptr());
    return {data + indptr[row] * tensors.logits.element_size(), 1, dtype_of(tensors.logits)};
  }
  /// `task` with a row's group.
  SparseTask task(std::int64_t row, RowTask task) const {
    task.teacher = logits(row);
    return {task, begin(row), size(row), rest(row)};
  }
};

/// Throws unless `rows` rows lead through the group's classes.
inline void check_indptr(const char* name, const GroupRows& group, std::int64_t rows) {
  const std::int64_t n = group.tensors.indices.numel();
  const std::int64_t begin = group.indptr[0], end = group.indptr[rows];
  const bool is_part = group.first_row.has_value();
  TORCH_CHECK_VALUE(is_part ? begin >= 0 : begin == 0, name,
                    ": teacher_group.indptr must start at 0, got ", begin);
  for (std::int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK_VALUE(group.size(row) >= 0, name, ": teacher_group.indptr must not descend, got ",
                      group.indptr[row + 1], " after ", group.indptr[row], " (row ",
                      group.number(row), ")");
  }
  TORCH_CHECK_VALUE(is_part ? end <= n : end == n, name, ": teacher_group.indptr must end at ", n,
                    ", the number of indices, got ", end);
}

/// Throws unless a row's classes ascend within [0, classes).
inline void check_classes(const char* name, const GroupRows& group, std::int64_t row,
                          std::int64_t classes) {
  const std::int32_t *first = group.begin(row), *last = first + group.size(row);
  for (const std::int32_t* k = first; k != last; ++k) {
    TORCH_CHECK_INDEX(*k >= 0 && *k < classes, name, ": teacher_group.indices: class ", *k,
                      " is out of bounds for ", classes, " classes (row ", group.number(row), ")");
    TORCH_CHECK_VALUE(k == first || k[-1] < *k, name,
                      ": teacher_group.indices must ascend within a row, got ", *k, " after ",
                      k == first ? -1 : k[-1], " (row ", group.number(row), ")");
  }
}

inline bool holds(const GroupRows& group, std::int64_t row, std::int64_t target) {
  return std::binary_search(group.begin(row), group.begin(row) + group.size(row), target);
}

/// Throws unless a row's group has its target; `shown`: as the caller counts classes. A row that
/// could not be grouped has no class at all, and is NaN.
inline void check_holds(const char* name, const GroupRows& group, std::int64_t row,
                        std::int64_t target, std::int64_t shown) {
  TORCH_CHECK_INDEX(std::isnan(group.rest(row)) || holds(group, row, target), name, ": target ",
                    shown, " is not in its row's group (row ", group.number(row),
                    "); pass the targets to gkd.teacher_group too");
}

}  // namespace gkd::cpu
