// CPU backend of sparse_loss: checks the group's numbers, which only a backend can read, and runs
// the rows.
#include <torch/library.h>

#include <cmath>

#include "cpu/group_rows.h"
#include "cpu/losses.h"

namespace gkd {
namespace {

/// Throws where anything would be read out of bounds, and where the group cannot be this call's.
void check_rows(const char* name, const cpu::Rows& rows, const cpu::GroupRows& group) {
  cpu::check_indptr(name, group, rows.count());
  const std::int64_t classes = rows.classes();
  for (std::int64_t row = 0; row < rows.count(); ++row) {
    cpu::check_classes(name, group, row, classes);
    TORCH_CHECK_VALUE(group.size(row) < classes || !(group.rest(row) > -HUGE_VAL), name,
                      ": teacher_group.rest must be -inf where all ", classes,
                      " classes are in the group, got ", group.rest(row), " (row ",
                      group.number(row), "); was the group made of more classes?");
    const cpu::RowTarget target = rows.target(row);
    if (!rows.targets || target.ignored) continue;
    check_target_value(name, target.value, classes, group.number(row));
    cpu::check_holds(name, group, row, target.value, target.value);
  }
}

void sparse_cpu(const CallOptions& s, Ref student, const GroupPart& given,
                const OptionalTensor& target, const ForwardTensors& made) {
  const cpu::GroupRows group(given, given.first_row);
  cpu::Rows rows(s, student, group.tensors.logits, target);
  check_rows(sparse_name(cpu::has_parts(made)), rows, group);
  cpu::Losses losses(&rows, made);
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    const cpu::RowTarget row_target = rows.target(row);
    if (row_target.ignored) {
      rows.clear_gradient(row);
      return;
    }
    const cpu::SparseTask task = group.task(row, rows.task(row, row_target.value));
    losses.set_row(row, rows.kernels.sparse.row(task, executor, scratch));
  });
  losses.write(rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) { register_sparse<sparse_cpu>(m); }

}  // namespace gkd
