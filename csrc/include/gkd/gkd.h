// gkd: Grouped Knowledge Distillation (Zhao et al., AAAI 2023, arXiv 2304.04462) for LibTorch.
//
// Logits are [..., C], float16, bfloat16, float32 or float64, on one CPU or CUDA device; their
// leading dimensions are rows, student and teacher dtypes may differ, any strides are accepted.
// Targets are int64 or int32 [...].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "gkd/export.h"
#include "gkd/options.h"

namespace gkd {

/// The GKD loss: a scalar, or [...] with reduction "none". float32, float64 for float64 logits.
/// Differentiable once with respect to `student_logits`. Throws c10::ValueError, c10::TypeError,
/// c10::IndexError or c10::Error naming the argument. A target out of bounds throws on the CPU; on
/// a device its row is NaN, loss and gradient, unless `check_target` asks for the exception.
GKD_API at::Tensor loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                        const std::optional<at::Tensor>& target = std::nullopt,
                        const LossOptions& options = {});

/// What training_loss returns, each reduced alike; only `total` is differentiable.
struct TrainingLoss {
  at::Tensor total;          ///< w_ce cross_entropy + w_d distillation
  at::Tensor cross_entropy;  ///< log sum_j exp(s'_j) - s'_target, at temperature 1, unweighted
  at::Tensor distillation;   ///< `loss` of the scaled logits, unweighted
};

/// The loss of a whole head in one pass over its logits (cosines, or finished logits with a scale
/// of 1): cross-entropy with a margin on the target, and `loss`. Two reads and one write of [B, C].
/// Settings, errors and "mean" are those of `loss`; margins and distillation_factor lie on the
/// logits' device, are read there, and must not require grad.
GKD_API TrainingLoss training_loss(const at::Tensor& student_logits,
                                   const at::Tensor& teacher_logits, const at::Tensor& target,
                                   const TrainingOptions& training = {},
                                   const LossOptions& options = {});

/// A teacher without its logits: the primary group of each of B rows in compressed sparse row form,
/// and one number for all its other classes. A row of rest NaN has an empty group, and is NaN.
struct TeacherGroup {
  at::Tensor indptr;   ///< int64 [B + 1], from 0 to n
  at::Tensor indices;  ///< int32 [n], classes, ascending within a row
  at::Tensor logits;   ///< [n], their logits, before T
  at::Tensor rest;     ///< float64 [B], log sum exp(u_j/T) of all others; -inf: none; losses
                       ///< take float32 too
};

/// The groups that `loss` would use with the same options, of which those that choose the group,
/// temperature and ignore_index are used; a row of that target has a group without it. `dtype`: of
/// the logits that are kept, the teacher's own unless given. Throws c10::ValueError where a group
/// has more than `max_classes`, c10::IndexError for a target out of bounds. Waits for the device.
GKD_API TeacherGroup teacher_group(const at::Tensor& teacher_logits,
                                   const std::optional<at::Tensor>& target = std::nullopt,
                                   const LossOptions& options = {},
                                   std::optional<at::ScalarType> dtype = std::nullopt,
                                   std::optional<std::int64_t> max_classes = std::nullopt);

/// `loss` of a teacher that was grouped before, with the temperature that it was grouped with: one
/// read of the student's logits and one write of their gradient. Throws c10::ValueError for options
/// that a group cannot serve (secondary_weight, rank_by, and what chose the group), and
/// c10::IndexError for a class out of bounds or a target outside its row's group; on CUDA such a
/// row is NaN.
GKD_API at::Tensor sparse_loss(const at::Tensor& student_logits, const TeacherGroup& teacher_group,
                               const std::optional<at::Tensor>& target = std::nullopt,
                               const LossOptions& options = {});

/// `training_loss` of such a teacher. Its logits are those of scaled cosines, finished: the scale
/// multiplies the student's logits alone.
GKD_API TrainingLoss training_sparse_loss(const at::Tensor& student_logits,
                                          const TeacherGroup& teacher_group,
                                          const at::Tensor& target,
                                          const TrainingOptions& training = {},
                                          const LossOptions& options = {});

/// One rank's shard of a row's classes, and the ranks that hold the others.
struct Shard {
  std::int64_t class_start = 0;  ///< the shard's first class
  std::int64_t num_classes = 0;  ///< of the whole row, at most 2^31 - 1
  std::string group_name{};      ///< of a c10d::ProcessGroup, as registered with torch
  std::int64_t world_size = 1;   ///< ranks in it
};

/// `loss` of [..., num_classes] logits, of which this rank holds [..., C_r]; C_r may be 0. Every
/// rank of the group calls it with the same rows, settings and targets, which count from class 0 of
/// the whole row, and gets the same loss and its own shard's gradient. `method` and `check_target`
/// are not used: a target out of bounds makes its row NaN. Nothing is compared between ranks; see
/// gkd.distributed.loss in Python for that and for the collectives.
GKD_API at::Tensor sharded_loss(const at::Tensor& student_shard, const at::Tensor& teacher_shard,
                                const std::optional<at::Tensor>& target, const Shard& shard,
                                const LossOptions& options = {});

/// `training_loss` of a shard, as sharded_loss is `loss` of one; margins, scale and target are
/// those of the whole row. No collective more than sharded_loss (one for 16-bit logits with
/// distill_margin).
GKD_API TrainingLoss sharded_training_loss(const at::Tensor& student_shard,
                                           const at::Tensor& teacher_shard,
                                           const at::Tensor& target, const Shard& shard,
                                           const TrainingOptions& training = {},
                                           const LossOptions& options = {});

/// `sparse_loss` of a shard: of each row's group the classes that fall in it, counted from
/// class_start, and the whole row's `rest`. Two collectives. A row whose numbers cannot be used, or
/// whose target is not in its group, is NaN.
GKD_API at::Tensor sharded_sparse_loss(const at::Tensor& student_shard,
                                       const TeacherGroup& group_shard,
                                       const std::optional<at::Tensor>& target, const Shard& shard,
                                       const LossOptions& options = {});

/// `training_sparse_loss` of a shard, with no collective more.
GKD_API TrainingLoss sharded_training_sparse_loss(const at::Tensor& student_shard,
                                                  const TeacherGroup& group_shard,
                                                  const at::Tensor& target, const Shard& shard,
                                                  const TrainingOptions& training = {},
                                                  const LossOptions& options = {});

/// Per-row diagnostics, each [...]; NaN in a row that holds NaN or +inf, or that is ignored.
struct Group {
  at::Tensor size;          ///< int64, classes in the primary group
  at::Tensor mass_teacher;  ///< P
  at::Tensor mass_student;  ///< Q
  at::Tensor cut;           ///< smallest ranking logit in the group; +inf where it is empty
  at::Tensor primary;       ///< Primary-KD, unweighted, without T^2
  at::Tensor binary;        ///< Binary-KD
  at::Tensor secondary;     ///< Secondary-KD
  at::Tensor mask;          ///< bool [..., C] when asked for, else [0]
};

/// Diagnostics of the grouping that `loss` would use with the same options.
GKD_API Group group(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                    const std::optional<at::Tensor>& target = std::nullopt,
                    const LossOptions& options = {}, bool return_mask = false);

/// The group size that the paper's authors train with, one for the batch: the least n, in steps of
/// `step` and at most C, for which the n largest of the batch-summed probabilities softmax(student)
/// (temperature 1) reach `rate` of the batch. A [] int64 tensor on the logits' device; reading it
/// synchronises, computing it does not.
GKD_API at::Tensor adaptive_group_size(const at::Tensor& student_logits, double rate = 0.93,
                                       std::int64_t step = 100);

}  // namespace gkd
