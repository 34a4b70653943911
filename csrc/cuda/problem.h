// One call as the kernels see it: raw pointers, sizes and strides, no torch. Programs without torch
// fill this in and call the launchers of launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

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

enum class Reduction : std::int32_t { kNone, kMean, kSum };

/// Inputs and settings.
struct Problem {
  Matrix student, teacher;
  Target target;
  std::int64_t rows = 0, classes = 0;  ///< rows >= 1, classes >= 1
  std::int64_t all_classes = 0;        ///< where `classes` is one shard's: of the whole row
  std::int64_t class_start = 0;        ///< the shard's first class; targets count from class 0
  double threshold = 0.93;             ///< in (0, 1], used when group_size < 0
  std::int64_t group_size = -1;
  bool by_student = false;
  Weights weights;
  Reduction reduction = Reduction::kMean;

  GKD_HD const Matrix& ranking() const { return by_student ? student : teacher; }
  GKD_HD std::int64_t row_classes() const { return all_classes > 0 ? all_classes : classes; }
  /// Arithmetic is in double when either input is, else in float.
  GKD_HD bool wide() const {
    return student.dtype == Dtype::kDouble || teacher.dtype == Dtype::kDouble;
  }
  GKD_HD GradScale grad_scale(double weight) const {
    return gkd::grad_scale(weight, weights, student.dtype == Dtype::kHalf);
  }
};

/// Where results go, in device memory. `loss` and `grad_scale` have the arithmetic's type.
struct Results {
  void* loss = nullptr;        ///< [] or, without reduction, [rows]
  void* grad_scale = nullptr;  ///< []: the loss's gradient is grad_scale * gradient
  void* gradient =
      nullptr;  ///< [rows, classes] contiguous in the student's dtype; null: not wanted
};

/// What gkd::group reports, in device memory; columns of the arithmetic's type, [rows] each.
struct GroupColumns {
  std::int64_t* size = nullptr;
  void *mass_teacher = nullptr, *mass_student = nullptr, *cut = nullptr;
  void *primary = nullptr, *binary = nullptr, *secondary = nullptr;
  bool* mask = nullptr;  ///< [rows, classes] contiguous; null: not wanted
};

/// A device's limits. Tests and benchmarks lower them to choose a kernel.
struct Device {
  int multiprocessors = 1;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory that a block may opt in to
  int cluster = 0;               ///< blocks of the largest cluster to try; 0: no clusters
  bool cooperative = false;      ///< grants cooperative launches
};

/// The kernels that a call runs.
enum class LaunchStrategy : std::int32_t {
  kMultiKernel,  ///< several kernels, any row, any device
  kBlock,        ///< one kernel, one block a row: the row pair fits a block's shared memory
  kCluster,      ///< one kernel, one cluster a row: it fits 2 to 16 blocks' (sm_90 and later)
  kGrid,         ///< one cooperative kernel, a team of blocks a row: it fits up to 128 blocks'
};

}  // namespace gkd::cuda
