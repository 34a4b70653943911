// CPU backend of sparse_loss: checks the group's numbers, which only a backend can read, and runs
// the rows.
#include <torch/library.h>

#include <cmath>

#include "cpu/losses.h"
#include "sparse.h"

namespace gkd {
namespace {

/// The arrays of a group, in compressed sparse row form.
struct GroupRows {
  const GroupPart& group;
  const std::int64_t* indptr = group.indptr.const_data_ptr<std::int64_t>();
  const std::int32_t* indices = group.indices.const_data_ptr<std::int32_t>();

  std::int64_t size(std::int64_t row) const { return indptr[row + 1] - indptr[row]; }
  const std::int32_t* begin(std::int64_t row) const { return indices + indptr[row]; }
  /// A row's number for messages.
  std::int64_t number(std::int64_t row) const { return group.first_row.value_or(0) + row; }
  double rest(std::int64_t row) const {
    return group.rest.scalar_type() == at::kDouble ? group.rest.const_data_ptr<double>()[row]
                                                   : group.rest.const_data_ptr<float>()[row];
  }
  cpu::LogitsRow logits(std::int64_t row) const {
    const char* data = static_cast<const char*>(group.logits.const_data_ptr());
    return {data + indptr[row] * group.logits.element_size(), 1, dtype_of(group.logits)};
  }
};

/// Throws where anything would be read out of bounds, and where the group cannot be this call's.
void check_rows(const char* name, const cpu::Rows& rows, const GroupRows& group) {
  const std::int64_t n = group.group.indices.numel(), count = rows.count();
  const std::int64_t begin = group.indptr[0], end = group.indptr[count];
  const bool is_part = group.group.first_row.has_value();
  TORCH_CHECK_VALUE(is_part ? begin >= 0 : begin == 0, name,
                    ": teacher_group.indptr must start at 0, got ", begin);
  for (std::int64_t row = 0; row < count; ++row) {
    TORCH_CHECK_VALUE(group.size(row) >= 0, name, ": teacher_group.indptr must not descend, got ",
                      group.indptr[row + 1], " after ", group.indptr[row], " (row ",
                      group.number(row), ")");
  }
  TORCH_CHECK_VALUE(is_part ? end <= n : end == n, name, ": teacher_group.indptr must end at ", n,
                    ", the number of indices, got ", end);
  const std::int64_t classes = rows.classes();
  for (std::int64_t row = 0; row < count; ++row) {
    const std::int32_t *first = group.begin(row), *last = first + group.size(row);
    for (const std::int32_t* k = first; k != last; ++k) {
      TORCH_CHECK_INDEX(*k >= 0 && *k < classes, name, ": teacher_group.indices: class ", *k,
                        " is out of bounds for ", classes, " classes (row ", group.number(row),
                        ")");
      TORCH_CHECK_VALUE(k == first || k[-1] < *k, name,
                        ": teacher_group.indices must ascend within a row, got ", *k, " after ",
                        k == first ? -1 : k[-1], " (row ", group.number(row), ")");
    }
    TORCH_CHECK_VALUE(group.size(row) < classes || !(group.rest(row) > -HUGE_VAL), name,
                      ": teacher_group.rest must be -inf where all ", classes,
                      " classes are in the group, got ", group.rest(row), " (row ",
                      group.number(row), "); was the group made of more classes?");
    const cpu::RowTarget target = rows.target(row);
    if (!rows.targets || target.ignored) continue;
    check_target_value(name, target.value, classes, group.number(row));
    // A row that could not be grouped has no class at all, and is NaN.
    TORCH_CHECK_INDEX(std::isnan(group.rest(row)) || std::binary_search(first, last, target.value),
                      name, ": target ", target.value, " is not in its row's group (row ",
                      group.number(row), "); pass the targets to gkd.teacher_group too");
  }
}

void sparse_cpu(const CallOptions& s, Ref student, const GroupPart& given,
                const OptionalTensor& target, const ForwardTensors& made) {
  const GroupPart dense{{given.indptr.contiguous(), given.indices.contiguous(),
                         given.logits.contiguous(), given.rest.contiguous()},
                        given.first_row};
  const GroupRows group{dense};
  cpu::Rows rows(s, student, dense.logits, target);
  check_rows(sparse_name(cpu::has_parts(made)), rows, group);
  cpu::Losses losses(&rows, made);
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    const cpu::RowTarget row_target = rows.target(row);
    if (row_target.ignored) {
      rows.clear_gradient(row);
      return;
    }
    cpu::SparseTask task;
    task.row = rows.task(row, row_target.value);
    task.row.teacher = group.logits(row);
    task.indices = group.begin(row);
    task.size = group.size(row);
    task.rest = group.rest(row);
    losses.set_row(row, rows.kernels.sparse_row(task, executor, scratch));
  });
  losses.write(rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) { register_sparse<sparse_cpu>(m); }

}  // namespace gkd
