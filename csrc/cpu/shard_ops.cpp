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
    return {Rows::task(row, here), c.num_classes, c.has_wide_keys()};
  }
};

void extremes(const ShardCall& c, Ref out) {
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, auto&&... with) {
    rows.stage.extremes(rows.task(row), with..., int64_row(out, row));
  });
}

void counts(const ShardCall& c, Ref extremes, Ref out) {
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, auto&&...) {
    rows.stage.counts(rows.task(row), int64_row(extremes, row),
                      out.mutable_data_ptr<std::int32_t>() + row * kBins);
  });
}

void histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search, Ref out) {
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, auto&&...) {
    rows.stage.histogram(rows.task(row), int64_row(extremes, row),
                         counts.const_data_ptr<std::int32_t>() + row * kBins,
                         int64_row(search, row), int64_row(out, row));
  });
}

void refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search, const TensorPair& out) {
  const ShardRows rows(c);
  double* cut = std::get<1>(out).mutable_data_ptr<double>();
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    cut[row] =
        rows.stage.refine(rows.task(row), int64_row(extremes, row), int64_row(histogram, row),
                          int64_row(search, row), int64_row(std::get<0>(out), row));
  }
}

void moments(const ShardCall& c, Ref cut, Ref out) {
  const ShardRows rows(c);
  rows.for_each([&](std::int64_t row, auto&&... with) {
    double* message = out.mutable_data_ptr<double>() + row * c.moments_width();
    rows.stage.moments(rows.task(row), with..., cut.const_data_ptr<double>()[row], message);
    // A target that is no class of the whole row is told to all ranks: their targets might differ.
    const cpu::RowTarget target = rows.target(row);
    const bool in_row = target.value >= 0 && target.value < c.num_classes;
    if (c.target && !target.ignored && !in_row) message[kMsgInvalid] = 1;
  });
}

MergedRow merge(const ShardRows& rows, Ref moments, std::int64_t row) {
  const std::int64_t width = rows.c.moments_width();
  return merge_messages(moments.const_data_ptr<double>() + row * width, moments.size(0),
                        rows.c.rows() * width, rows.weights);
}

void write_gradient(const ShardCall& c, Ref cut, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  ShardRows rows(c);
  rows.gradient = std::get<0>(out);
  rows.gradient_scale = rows.grad_scale().forward;
  rows.for_each([&](std::int64_t row, auto&&... with) {
    const cpu::ShardTask task = rows.task(row);
    const MergedRow merged = merge(rows, moments, row);
    double* row_kl = std::get<1>(out).mutable_data_ptr<double>() + 2 * row;
    row_kl[0] = row_kl[1] = 0;
    if (rows.target(row).ignored) {
      rows.stage.fill(task, 0);
    } else if (merged.invalid) {
      rows.stage.fill(task, kNan);
    } else {
      rows.stage.write_gradient(task, with..., cut.const_data_ptr<double>()[row], merged.group,
                                {merged.cross_entropy, merged.others.high}, row_kl);
    }
  });
}

void loss(const ShardCall& c, Ref moments, Ref kl, const LossTensors& out) {
  const ShardRows rows(c);
  const Weights& weights = rows.weights;
  at::Tensor values[3];  // total, cross-entropy, distillation
  for (at::Tensor& t : values) {
    t = at::zeros({c.rows()}, c.student.options().dtype(at::kDouble));
  }
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    if (rows.target(row).ignored) continue;
    const MergedRow merged = merge(rows, moments, row);
    double sum[2] = {0, 0};
    for (std::int64_t rank = 0; rank < kl.size(0); ++rank) {
      const double* rank_kl = kl.const_data_ptr<double>() + (rank * c.rows() + row) * 2;
      for (int g = 0; g < 2; ++g) sum[g] += rank_kl[g];
    }
    GroupCoef<double> unused[2];
    const RowSummary summary = row_coefficients(merged.group, weights, unused);
    const double distillation = merged.invalid ? kNan : row_loss(summary, weights, sum[0], sum[1]);
    const double head = merged.invalid && c.has_cross_entropy() ? kNan : merged.cross_entropy.loss;
    const double row_values[3] = {total_loss(weights, head, distillation), head, distillation};
    for (int k = 0; k < 3; ++k) values[k].mutable_data_ptr<double>()[row] = row_values[k];
  }
  const auto& [total, grad_scale, cross_entropy, distillation] = out;
  const at::Tensor* results[3] = {&total, &cross_entropy, &distillation};
  for (int k = 0; k < 3; ++k) {
    results[k]->copy_(c.options.reduction == "none" ? values[k] : values[k].sum() * rows.weight());
  }
  grad_scale.fill_(rows.grad_scale().backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
