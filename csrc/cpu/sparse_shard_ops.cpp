// CPU backend of the sharded stages of a grouped teacher.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/group_rows.h"
#include "sparse_shard.h"

namespace gkd {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// The rows of a shard. A rank that threw alone would leave the others waiting: a row whose numbers
/// cannot be used is invalid instead.
struct SparseShardRows : cpu::Rows {
  const SparseShardCall& c;
  const cpu::GroupRows group{c.group};

  explicit SparseShardRows(const SparseShardCall& c)
      : Rows(c.options, c.student, c.group.logits, c.target), c(c) {}

  /// Of a target in this shard, counted from its first class; negative: none.
  std::int64_t target_here(std::int64_t row) const {
    const cpu::RowTarget row_target = target(row);
    const std::int64_t here = row_target.value - c.class_start;
    return c.target && !row_target.ignored && here >= 0 && here < classes() ? here : -1;
  }
  /// Whether the row can be read, and holds its target.
  bool is_usable(std::int64_t row) const {
    const std::int64_t from = group.indptr[row], to = group.indptr[row + 1];
    if (from < 0 || to < from || to > group.tensors.indices.numel()) return false;
    const std::int32_t *first = group.indices + from, *last = group.indices + to;
    for (const std::int32_t* k = first; k != last; ++k) {
      if (*k < 0 || *k >= classes() || (k != first && k[-1] >= *k)) return false;
    }
    if (!c.target) return true;
    const std::int64_t value = target(row).value, here = target_here(row);
    return value >= 0 && value < c.num_classes && (here < 0 || cpu::holds(group, row, here));
  }
  cpu::SparseTask task(std::int64_t row) const {
    return group.task(row, Rows::task(row, target_here(row)));
  }
};

void moments(const SparseShardCall& c, Ref out) {
  const SparseShardRows rows(c);
  rows.for_each([&](std::int64_t row, auto&&... with) {
    double* message = out.mutable_data_ptr<double>() + row * c.moments_width();
    std::fill(message, message + c.moments_width(), 0);
    if (rows.target(row).ignored) return;
    if (!rows.is_usable(row)) {
      message[kMsgInvalid] = 1;
      return;
    }
    rows.kernels.sparse.moments(rows.task(row), with..., message);
  });
}

void write_gradient(const SparseShardCall& c, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  SparseShardRows rows(c);
  rows.gradient = std::get<0>(out);
  rows.gradient_scale = rows.grad_scale().forward;
  const double inv_temperature = 1 / rows.weights.exponent_temperature();
  const std::int64_t width = c.moments_width(), stride = c.rows() * width;
  rows.for_each([&](std::int64_t row, auto&&... with) {
    double* kl = std::get<1>(out).mutable_data_ptr<double>() + 2 * row;
    kl[0] = kl[1] = 0;
    if (rows.target(row).ignored) {
      rows.clear_gradient(row);
      return;
    }
    const double* messages = moments.const_data_ptr<double>() + row * width;
    const MergedRow merged = merge_messages(messages, moments.size(0), stride, rows.weights);
    GroupMoments<double> group[2] = {merged.group[0], merged.group[1]};
    if (merged.invalid) {
      rows.kernels.shard.fill({rows.Rows::task(row, -1), c.num_classes}, kNan);
      return;
    }
    double high = -std::numeric_limits<double>::infinity();  // of the student's rest
    for (std::int64_t rank = 0; rank < moments.size(0); ++rank) {
      high = std::max(high, moments_from_message(messages + rank * stride, 1).shift.student);
    }
    group[1].change_shift({group[1].shift.teacher, high}, inv_temperature);
    const cpu::HeadOfRow head{merged.cross_entropy, merged.others.high};
    kl[0] = rows.kernels.sparse.write_gradient(rows.task(row), with..., group, head);
  });
}

/// Throws what would make a row invalid, for a rank that tells the others.
void check(const SparseShardCall& given) {
  check_sparse_shard(given);
  const at::Tensor student = by_row(given.student);
  const OptionalTensor target = by_row(given.target);
  const SparseShardCall c{given.options, student,           given.group,
                          target,        given.class_start, given.num_classes};
  const SparseShardRows rows(c);
  const char* name = sparse_shard_name(c.has_cross_entropy());
  cpu::check_indptr(name, rows.group, c.rows());
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    cpu::check_classes(name, rows.group, row, rows.classes());
    const std::int64_t here = rows.target_here(row);
    if (here >= 0) cpu::check_holds(name, rows.group, row, here, rows.target(row).value);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_sparse_stages<moments, write_gradient>(m);
  m.impl("_check_sparse_shard", sparse_shard_op<check>);
}

}  // namespace gkd
