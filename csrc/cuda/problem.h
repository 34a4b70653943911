// One call as the kernels see it: raw pointers, sizes and strides, no torch. Programs without torch
// fill this in and call the launchers of launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/cut.h"
#include "math/dtype.h"
#include "math/loss.h"

namespace gkd::cuda {

/// [rows, classes] logits in device memory; strides count elements and may be 0 or negative.
struct Matrix {
  const void* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 1;
  Dtype dtype = Dtype::kFloat;
};

/// [rows] class indices in device memory; data null: no target.
struct Target {
  const void* data = nullptr;
  std::int64_t stride = 1;
  bool is_int32 = false;
  std::int64_t ignore_index = -100;
};

/// What training_loss has beside a loss. Tensors are in device memory, of the arithmetic's type.
struct Head {
  bool is_on = false;  ///< the call is one of training_loss: rows have parts
  double margin = 0;
  const void* margins = nullptr;  ///< [rows]; null: none
  std::int64_t margins_stride = 0;
  bool distill_margin = false;  ///< the target's logits have the margin in the terms too
  const void* distillation_factor = nullptr;  ///< []; null: 1
};

enum class Reduction : std::int32_t { kNone, kMean, kSum };

/// Inputs and settings.
struct Problem {
  Matrix student, teacher;
  Target target;
  std::int64_t rows = 0, classes = 0;  ///< rows >= 1, classes >= 1
  std::int64_t all_classes = 0;        ///< where `classes` is one shard's: of the whole row
  std::int64_t class_start = 0;        ///< the shard's first class; targets count from class 0
  /// sort: CUB sorts every row's ranking logits, keys only, and a scan of the sorted masses meets
  /// the threshold: at least 72 bytes of traffic per class, and at most 256 MiB of scratch unless
  /// one row needs more. Otherwise counts by bin leave a few classes that can be the cut, which are
  /// weighed exactly: no [B, C] scratch. See LaunchStrategy.
  Selection selection;
  Weights weights;
  Reduction reduction = Reduction::kMean;
  Head head;

  /// The scale of masses. Of a float, the passes over vectors can sum 45 bits.
  template <class T>
  GKD_HD T weight_scale() const {
    const double scale = mass_scale(row_classes());
    return static_cast<T>(sizeof(T) == sizeof(float) && scale > 0x1p45 ? 0x1p45 : scale);
  }
  /// 1/T_g, of the logits as they are given
  template <class T>
  GKD_HD T inv_group_temperature() const {
    return static_cast<T>(1 / selection.temperature_or(weights.exponent_temperature()));
  }
  /// One of `data`, in the arithmetic's type.
  GKD_HD double number(const void* data, std::int64_t at) const {
    return compute_in_double() ? static_cast<const double*>(data)[at]
                               : static_cast<double>(static_cast<const float*>(data)[at]);
  }
  /// On the device: the weights, with what is in device memory.
  GKD_HD Weights all_weights() const {
    Weights w = weights;
    if (head.distillation_factor != nullptr) w.distillation *= number(head.distillation_factor, 0);
    return w;
  }
  /// On the device: of a row's target.
  GKD_HD double margin(std::int64_t row) const {
    if (head.margins == nullptr) return head.margin;
    return head.margin + number(head.margins, row * head.margins_stride);
  }
  /// On the device: as it is given, counted from class 0. There must be targets.
  GKD_HD std::int64_t target_of(std::int64_t row) const {
    const std::int64_t at = row * target.stride;
    return target.is_int32 ? static_cast<const std::int32_t*>(target.data)[at]
                           : static_cast<const std::int64_t*>(target.data)[at];
  }
  /// The dtype that holds every ranking logit: a margin may lie between two numbers of their own.
  GKD_HD Dtype ranking_dtype() const {
    if (!head.distill_margin) return ranking().dtype;
    return compute_in_double() ? Dtype::kDouble : Dtype::kFloat;
  }
  GKD_HD const Matrix& ranking() const { return selection.by_student ? student : teacher; }
  GKD_HD std::int64_t row_classes() const { return all_classes > 0 ? all_classes : classes; }
  /// Arithmetic is in double when either input is, else in float.
  GKD_HD bool compute_in_double() const {
    return student.dtype == Dtype::kDouble || teacher.dtype == Dtype::kDouble;
  }
  /// Both inputs have one dtype and are contiguous along the classes.
  GKD_HD bool is_contiguous() const {
    return student.dtype == teacher.dtype && student.col_stride == 1 && teacher.col_stride == 1;
  }
  GKD_HD GradScale grad_scale(double weight) const {
    return gkd::grad_scale(weight, all_weights(), student.dtype == Dtype::kHalf);
  }
};

/// Calls run(T()) with the type T of the problem's arithmetic.
template <class Run>
auto with_arithmetic(const Problem& p, Run run) {
  return p.compute_in_double() ? run(double()) : run(float());
}

/// Where results go, in device memory. `loss` and `grad_scale` have the arithmetic's type.
struct Results {
  void* loss = nullptr;        ///< [] or, without reduction, [rows]
  void* grad_scale = nullptr;  ///< []: the loss's gradient is grad_scale * gradient
  /// [rows, classes] contiguous in the student's dtype; null: no gradient is computed.
  void* gradient = nullptr;
  void *cross_entropy = nullptr, *distillation = nullptr;  ///< as loss; null: not asked for
};

/// What gkd::group reports, in device memory; columns of the arithmetic's type, [rows] each.
struct GroupColumns {
  std::int64_t* size = nullptr;
  void *mass_teacher = nullptr, *mass_student = nullptr, *cut = nullptr;
  void *primary = nullptr, *binary = nullptr, *secondary = nullptr;
  bool* mask = nullptr;  ///< [rows, classes] contiguous; null: no mask is written
};

/// The backward of a call: out = gradient * (grad_output[row] * *grad_scale), in device memory.
struct ScaleCall {
  const void* gradient = nullptr;  ///< [rows, classes] contiguous
  Dtype dtype = Dtype::kFloat;     ///< of gradient and out
  std::int64_t rows = 0, classes = 0;
  const void* grad_output = nullptr;
  std::int64_t grad_output_stride = 0;  ///< 0: one grad_output for all rows
  const void* grad_scale = nullptr;     ///< []
  bool factors_are_double = false;      ///< the type of grad_output and grad_scale, else float
  /// May be `gradient` itself: one thread reads and writes a class. A factor of 1 then leaves the
  /// row untouched.
  void* out = nullptr;
};

struct FusedPlan;

/// A device's limits. Tests and benchmarks lower them to choose a kernel.
struct Device {
  int multiprocessors = 1;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory that a block may opt in to
  int cluster = 0;               ///< blocks of the largest cluster to try; 0: no clusters
  bool cooperative = false;      ///< grants cooperative launches
  std::size_t paired_bytes = 0;  ///< as shared_bytes, where two blocks share a multiprocessor
  /// How many groups of a plan's blocks it holds at a time (fused/plan.h); null: as many as the
  /// limits above allow.
  std::int64_t (*residency)(Dtype, const FusedPlan&) = nullptr;

  /// Kernels can start while the one before runs: compute capability 9.0, which has clusters too.
  bool launches_early() const { return cluster > 0; }
};

/// The kernels that a call runs.
enum class LaunchStrategy : std::int32_t {
  kMultiKernel,  ///< several kernels, any row, any device
  kBlock,        ///< one kernel, one block per row: the row pair fits a block's shared memory
  kCluster,      ///< one kernel, one cluster per row: it fits 2 to 16 blocks' (sm_90 and later)
  kGrid,         ///< one cooperative kernel, 2 to 128 blocks per row
};

}  // namespace gkd::cuda
