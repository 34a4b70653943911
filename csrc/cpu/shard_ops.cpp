// CPU backend of the sharded stages: runs one kernel of cpu/kernels.h on every row.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "cpu/tensors.h"
#include "shard_call.h"

namespace gkd {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// The rows of a shard, and the kernels of their stages.
struct ShardRows : cpu::Rows {
  const ShardCall& c;
  const cpu::ShardKernels& stage;

  explicit ShardRows(const ShardCall& c)
      : Rows(c.options, c.student, c.teacher, c.target), c(c), stage(kernels.shard) {}

  cpu::ShardTask task(std::int64_t row) const {
    const cpu::RowTarget row_target = target(row);
    // A target below class_start belongs to another shard.
    const bool may_be_here = c.target && !row_target.ignored && row_target.value >= c.class_start;
    const std::int64_t here = may_be_here ? row_target.value - c.class_start : -1;
    return {Rows::task(row, here), c.num_classes};
  }
};

/// One message per row.
at::Tensor empty_messages(const ShardCall& c, std::int64_t length, at::ScalarType dtype) {
  return at::empty({c.rows(), length}, c.student.options().dtype(dtype));
}

template <class T>
T* row_of(const at::Tensor& t, std::int64_t row) {
  return t.mutable_data_ptr<T>() + row * t.size(1);
}
// torch's int64 and the kernels' long long are one type in memory.
long long* longs_of(const at::Tensor& t, std::int64_t row) {
  return reinterpret_cast<long long*>(row_of<std::int64_t>(t, row));
}

/// Null before the first pass.
const long long* search_of(const at::Tensor& search, std::int64_t row) {
  return search.dim() == 1 ? nullptr : longs_of(search, row);
}

at::Tensor extremes(const ShardCall& c) {
  at::Tensor out = empty_messages(c, kMsgExtremes, at::kLong);
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    rows.stage.extremes(rows.task(row), executor, scratch, longs_of(out, row));
  });
  return out;
}

at::Tensor counts(const ShardCall& c, Ref extremes) {
  at::Tensor out = empty_messages(c, kBins, at::kInt);
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, const cpu::Executor&, cpu::Scratch*) {
    rows.stage.counts(rows.task(row), longs_of(extremes, row), row_of<std::int32_t>(out, row));
  });
  return out;
}

at::Tensor histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search) {
  at::Tensor out = empty_messages(c, kMsgHistogram, at::kLong);
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, const cpu::Executor&, cpu::Scratch*) {
    rows.stage.histogram(rows.task(row), longs_of(extremes, row), row_of<std::int32_t>(counts, row),
                         search_of(search, row), longs_of(out, row));
  });
  return out;
}

TensorPair refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search) {
  at::Tensor next = empty_messages(c, kSearchFields, at::kLong);
  at::Tensor cut = at::empty({c.rows()}, c.student.options().dtype(at::kDouble));
  const ShardRows rows(c);
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    cut.mutable_data_ptr<double>()[row] =
        rows.stage.refine(rows.task(row), longs_of(extremes, row), longs_of(histogram, row),
                          search_of(search, row), longs_of(next, row));
  }
  return {next, cut};
}

at::Tensor moments(const ShardCall& c, Ref cut) {
  at::Tensor out = empty_messages(c, kMsgMoments, at::kDouble);
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    double* message = row_of<double>(out, row);
    rows.stage.moments(rows.task(row), executor, scratch, cut.const_data_ptr<double>()[row],
                       message);
    // A target that is no class of the whole row is told to all ranks: their targets might differ.
    const cpu::RowTarget target = rows.target(row);
    const bool in_row = target.value >= 0 && target.value < c.num_classes;
    if (c.target && !target.ignored && !in_row) message[kMsgInvalid] = 1;
  });
  return out;
}

/// A row's moments over all ranks.
struct Merged {
  GroupMoments<double> group[2];
  bool invalid = false;
};
Merged merge(const ShardCall& c, Ref moments, std::int64_t row) {
  Merged merged;
  const double* messages = moments.const_data_ptr<double>();
  for (std::int64_t rank = 0; rank < moments.size(0); ++rank) {
    const double* message = messages + (rank * c.rows() + row) * kMsgMoments;
    merged.invalid |= message[kMsgInvalid] != 0;
    for (int g = 0; g < 2; ++g) {
      merged.group[g].merge(moments_from_message(message, g), 1 / c.options.temperature);
    }
  }
  const auto& [primary, rest] = merged.group;
  merged.invalid |= (primary.sum_teacher == 0 && rest.sum_teacher == 0) ||
                    (primary.sum_student == 0 && rest.sum_student == 0);
  return merged;
}

TensorPair write_gradient(const ShardCall& c, Ref cut, Ref moments, bool need_grad) {
  at::Tensor gradient = need_grad ? at::empty({c.rows(), c.classes()}, c.student.options())
                                  : at::empty({0}, c.student.options());
  at::Tensor kl = empty_messages(c, 2, at::kDouble);
  ShardRows rows(c);
  if (need_grad) rows.gradient = &gradient;
  rows.gradient_scale = rows.grad_scale().forward;
  rows.for_each([&](std::int64_t row, const cpu::Executor& executor, cpu::Scratch* scratch) {
    const cpu::ShardTask task = rows.task(row);
    const cpu::RowTarget target = rows.target(row);
    const Merged merged = merge(c, moments, row);
    double* row_kl = row_of<double>(kl, row);
    row_kl[0] = row_kl[1] = 0;
    if (target.ignored) {
      rows.stage.fill(task, 0);
    } else if (merged.invalid) {
      rows.stage.fill(task, kNan);
    } else {
      rows.stage.write_gradient(task, executor, scratch, cut.const_data_ptr<double>()[row],
                                merged.group, row_kl);
    }
  });
  return {gradient, kl};
}

TensorPair loss(const ShardCall& c, Ref moments, Ref kl) {
  const ShardRows rows(c);
  const Weights weights = weights_of(c.options);
  at::Tensor losses = at::empty({c.rows()}, c.student.options().dtype(at::kDouble));
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    const cpu::RowTarget target = rows.target(row);
    const Merged merged = merge(c, moments, row);
    double sum[2] = {0, 0};
    for (std::int64_t rank = 0; rank < kl.size(0); ++rank) {
      const double* rank_kl = kl.const_data_ptr<double>() + (rank * c.rows() + row) * 2;
      for (int g = 0; g < 2; ++g) sum[g] += rank_kl[g];
    }
    GroupCoef<double> unused[2];
    const RowSummary summary = row_coefficients(merged.group, weights, unused);
    const double value = merged.invalid ? kNan : row_loss(summary, weights, sum[0], sum[1]);
    losses.mutable_data_ptr<double>()[row] = target.ignored ? 0 : value;
  }
  const auto options = c.student.options().dtype(compute_dtype(c.student, c.teacher));
  const at::Tensor total = c.options.reduction == "none" ? losses : losses.sum() * rows.weight();
  return {total.to(options.dtype()), at::full({}, rows.grad_scale().backward, options)};
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
