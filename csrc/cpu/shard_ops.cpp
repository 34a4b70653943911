// CPU backend of the sharded stages: runs one kernel of cpu/kernels.h on every row.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <limits>

#include "cpu/parallel.h"
#include "cpu/tensors.h"
#include "shard_call.h"

namespace gkd {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

const cpu::ShardKernels& kernels_of(const ShardCall& c) {
  return cpu::kernels().of(compute_dtype(c.student, c.teacher) == at::kDouble).shard;
}

cpu::RowTarget target_of(const ShardCall& c, std::int64_t row) {
  return cpu::target_of(c.target, row, c.options.ignore_index);
}

double weight_of(const ShardCall& c) {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < c.rows(); ++row) counted += !target_of(c, row).ignored;
  return cpu::reduction_weight(c.options.reduction, counted);
}

GradScale grad_scale_of(const ShardCall& c) {
  return grad_scale(weight_of(c), weights_of(c.options), c.student.scalar_type() == at::kHalf);
}

cpu::ShardTask task_of(const ShardCall& c, std::int64_t row) {
  cpu::ShardTask t;
  t.all_classes = c.num_classes;
  t.row.student = cpu::logits_row(c.student, row);
  t.row.teacher = cpu::logits_row(c.teacher, row);
  t.row.classes = c.classes();
  const cpu::RowTarget row_target = target_of(c, row);
  // A target below class_start belongs to another shard.
  const bool may_be_here = c.target && !row_target.ignored && row_target.value >= c.class_start;
  t.row.target = may_be_here ? row_target.value - c.class_start : -1;
  t.row.selection = selection_of(c.options);
  t.row.weights = weights_of(c.options);
  return t;
}

/// run(row, task, executor, scratch) for every row.
template <class Run>
void for_each_row(const ShardCall& c, Run run) {
  cpu::for_each_row(c.rows(), c.classes(),
                    [&](std::int64_t row, auto&&... with) { run(row, task_of(c, row), with...); });
}

void extremes(const ShardCall& c, Ref out) {
  for_each_row(c, [&](std::int64_t row, const cpu::ShardTask& task, auto&&... with) {
    kernels_of(c).extremes(task, with..., int64_row(out, row));
  });
}

void counts(const ShardCall& c, Ref extremes, Ref out) {
  for_each_row(c, [&](std::int64_t row, const cpu::ShardTask& task, auto&&...) {
    kernels_of(c).counts(task, int64_row(extremes, row),
                         out.mutable_data_ptr<std::int32_t>() + row * kBins);
  });
}

void histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search, Ref out) {
  for_each_row(c, [&](std::int64_t row, const cpu::ShardTask& task, auto&&...) {
    kernels_of(c).histogram(task, int64_row(extremes, row),
                            counts.const_data_ptr<std::int32_t>() + row * kBins,
                            int64_row(search, row), int64_row(out, row));
  });
}

void refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search, const TensorPair& out) {
  double* cut = std::get<1>(out).mutable_data_ptr<double>();
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    cut[row] =
        kernels_of(c).refine(task_of(c, row), int64_row(extremes, row), int64_row(histogram, row),
                             int64_row(search, row), int64_row(std::get<0>(out), row));
  }
}

void moments(const ShardCall& c, Ref cut, Ref out) {
  for_each_row(c, [&](std::int64_t row, const cpu::ShardTask& task, auto&&... with) {
    double* message = out.mutable_data_ptr<double>() + row * kMsgMoments;
    kernels_of(c).moments(task, with..., cut.const_data_ptr<double>()[row], message);
    // Send the flag to all ranks: their targets might differ.
    const cpu::RowTarget target = target_of(c, row);
    const bool is_class = target.value >= 0 && target.value < c.num_classes;
    if (c.target && !target.ignored && !is_class) message[kMsgInvalid] = 1;
  });
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

void write_gradient(const ShardCall& c, Ref cut, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  const at::Tensor& gradient = std::get<0>(out);
  double* kl = std::get<1>(out).mutable_data_ptr<double>();
  const double scale = grad_scale_of(c).forward;
  for_each_row(c, [&](std::int64_t row, cpu::ShardTask task, auto&&... with) {
    task.row.gradient = cpu::gradient_row(gradient, row);
    task.row.gradient_scale = scale;
    const Merged merged = merge(c, moments, row);
    double* row_kl = kl + 2 * row;
    row_kl[0] = row_kl[1] = 0;
    if (target_of(c, row).ignored) {
      kernels_of(c).fill(task, 0);
    } else if (merged.invalid) {
      kernels_of(c).fill(task, kNan);
    } else {
      kernels_of(c).write_gradient(task, with..., cut.const_data_ptr<double>()[row], merged.group,
                                   row_kl);
    }
  });
}

void loss(const ShardCall& c, Ref moments, Ref kl, const TensorPair& out) {
  const Weights weights = weights_of(c.options);
  at::Tensor losses = at::empty({c.rows()}, c.student.options().dtype(at::kDouble));
  for (std::int64_t row = 0; row < c.rows(); ++row) {
    const Merged merged = merge(c, moments, row);
    double sum[2] = {0, 0};
    for (std::int64_t rank = 0; rank < kl.size(0); ++rank) {
      const double* rank_kl = kl.const_data_ptr<double>() + (rank * c.rows() + row) * 2;
      for (int g = 0; g < 2; ++g) sum[g] += rank_kl[g];
    }
    double& value = losses.mutable_data_ptr<double>()[row];
    if (target_of(c, row).ignored) {
      value = 0;
    } else if (merged.invalid) {
      value = kNan;
    } else {
      GroupCoef<double> unused[2];
      value = row_loss(row_coefficients(merged.group, weights, unused), weights, sum[0], sum[1]);
    }
  }
  const auto& [total, grad_scale] = out;
  total.copy_(c.options.reduction == "none" ? losses : losses.sum() * weight_of(c));
  grad_scale.fill_(grad_scale_of(c).backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CPU, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
