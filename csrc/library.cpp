// Every schema of the project. Kernels register themselves in the file that defines them.
#include <torch/library.h>

/// The fields of gkd::LossOptions, in their order (settings.h).
#define GKD_SETTINGS                                                                \
  "*, float? threshold=None, int? group_size=None, float? group_temperature=None, " \
  "float temperature=4.0, float primary_weight=8.0, float binary_weight=1.0, "      \
  "float secondary_weight=0.0, bool coupled=False, str rank_by=\"teacher\", "       \
  "str reduction=\"mean\", int ignore_index=-100, "                                 \
  "str method=\"auto\""

/// Those of gkd::TrainingOptions, in their order; `cross_entropy` is the first one's default.
#define GKD_TRAINING(cross_entropy)                          \
  ", float cross_entropy_weight=" cross_entropy              \
  ", float distillation_weight=1.0, float scale=1.0, float " \
  "margin=0.0, bool distill_margin=False"
/// Its tensors: added to margin, by row, and multiplied by distillation_weight.
#define GKD_FACTORS "Tensor? margins=None, Tensor? distillation_factor=None, "
#define GKD_ALL_SETTINGS GKD_SETTINGS GKD_TRAINING("0.0")
#define GKD_PARTS "(Tensor total, Tensor cross_entropy, Tensor distillation)"

#define GKD_LOGITS "Tensor student_logits, Tensor teacher_logits, Tensor? target"
#define GKD_SHARD GKD_LOGITS ", int class_start, int num_classes, "

namespace {

/// One rank's part of a class-sharded call (csrc/sharded.cpp). math/messages.h says what travels,
/// with [B] before it.
void define_sharded(torch::Library& m) {
  m.def("sharded_loss(" GKD_SHARD "int world_size, str group_name, " GKD_SETTINGS ") -> Tensor");
  m.def("sharded_training_loss(" GKD_SHARD
        "int world_size, str group_name, " GKD_FACTORS GKD_SETTINGS GKD_TRAINING(
            "1.0") ") -> " GKD_PARTS);
  // As _forward.
  m.def("_sharded_forward(" GKD_SHARD
        "int world_size, str group_name, bool need_grad, bool need_parts, " GKD_FACTORS
            GKD_ALL_SETTINGS
        ") -> (Tensor loss, Tensor gradient, Tensor grad_scale, Tensor cross_entropy, "
        "Tensor distillation)");
  // Throws what sharded_loss would, without a collective.
  m.def("_check_shard(" GKD_SHARD GKD_FACTORS GKD_ALL_SETTINGS ") -> ()");
  m.def("_shard_extremes(" GKD_SHARD GKD_FACTORS GKD_ALL_SETTINGS ") -> Tensor");
  m.def("_shard_counts(" GKD_SHARD "Tensor extremes, " GKD_FACTORS GKD_ALL_SETTINGS ") -> Tensor");
  // `search` is [0] before the first radix pass, and comes from _shard_refine after it.
  m.def("_shard_histogram(" GKD_SHARD
        "Tensor extremes, Tensor counts, Tensor search, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> Tensor");
  m.def("_shard_refine(" GKD_SHARD
        "Tensor extremes, Tensor histogram, Tensor search, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor search, Tensor cut)");
  // cut: double [B], smallest ranking logit in the group.
  m.def("_shard_moments(" GKD_SHARD "Tensor cut, " GKD_FACTORS GKD_ALL_SETTINGS ") -> Tensor");
  // moments: all ranks', [W, B, 13]. gradient: [B, C_r], or [0] without need_grad.
  m.def("_shard_gradient(" GKD_SHARD
        "Tensor cut, Tensor moments, bool need_grad, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor gradient, Tensor kl)");
  m.def("_shard_loss(" GKD_SHARD "Tensor moments, Tensor kl, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor loss, Tensor grad_scale, Tensor cross_entropy, Tensor distillation)");
}

#define GKD_GROUP "Tensor indptr, Tensor indices, Tensor logits, Tensor rest"

/// A teacher as the group of each row, in compressed sparse row form: classes indices[indptr[b]] to
/// indices[indptr[b + 1] - 1] of row b, their logits, and rest, log sum exp(u_j/T) of all others.
void define_sparse(torch::Library& m) {
  // Of the settings it has those that choose the group, temperature and ignore_index.
  m.def(
      "teacher_group(Tensor teacher_logits, Tensor? target=None, ScalarType? dtype=None, "
      "int? max_classes=None, " GKD_SETTINGS ") -> (" GKD_GROUP ")");
  // Throws what teacher_group would before it looks at the logits.
  m.def(
      "_check_teacher_group(Tensor teacher_logits, Tensor? target=None, ScalarType? dtype=None, "
      "int? max_classes=None, " GKD_SETTINGS ") -> ()");
  m.def("sparse_loss(Tensor student_logits, " GKD_GROUP ", Tensor? target=None, " GKD_SETTINGS
        ") -> Tensor");
  m.def("training_sparse_loss(Tensor student_logits, " GKD_GROUP
        ", Tensor target, " GKD_FACTORS GKD_SETTINGS GKD_TRAINING("1.0") ") -> " GKD_PARTS);
  // As _forward. With first_row the call's rows are some of a longer group, from that one on:
  // indptr, [rows + 1] entries of the group's, leads into all of its indices and logits.
  m.def("_sparse_forward(Tensor student_logits, " GKD_GROUP
        ", Tensor? target, bool need_grad=True, bool need_parts=False, "
        "int? first_row=None, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor loss, Tensor gradient, Tensor grad_scale, Tensor cross_entropy, "
        "Tensor distillation)");
}

#define GKD_SPARSE_SHARD \
  "Tensor student_shard, " GKD_GROUP ", Tensor? target, int class_start, int num_classes, "

/// As define_sharded(), of a group whose indices count from the shard's first class.
void define_sharded_sparse(torch::Library& m) {
  m.def("sharded_sparse_loss(" GKD_SPARSE_SHARD "int world_size, str group_name, " GKD_SETTINGS
        ") -> Tensor");
  m.def("sharded_training_sparse_loss(" GKD_SPARSE_SHARD
        "int world_size, str group_name, " GKD_FACTORS GKD_SETTINGS GKD_TRAINING(
            "1.0") ") -> " GKD_PARTS);
  m.def("_sharded_sparse_forward(" GKD_SPARSE_SHARD
        "int world_size, str group_name, bool need_grad, bool need_parts, " GKD_FACTORS
            GKD_ALL_SETTINGS
        ") -> (Tensor loss, Tensor gradient, Tensor grad_scale, Tensor cross_entropy, "
        "Tensor distillation)");
  m.def("_check_sparse_shard(" GKD_SPARSE_SHARD GKD_FACTORS GKD_ALL_SETTINGS ") -> ()");
  m.def("_shard_sparse_moments(" GKD_SPARSE_SHARD GKD_FACTORS GKD_ALL_SETTINGS ") -> Tensor");
  // moments: all ranks' and, last, that of the teacher's other classes.
  m.def("_shard_sparse_gradient(" GKD_SPARSE_SHARD
        "Tensor moments, bool need_grad, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor gradient, Tensor kl)");
}

}  // namespace

TORCH_LIBRARY(gkd, m) {
  define_sharded(m);
  define_sparse(m);
  define_sharded_sparse(m);
  m.def("loss(" GKD_LOGITS "=None, " GKD_SETTINGS ") -> Tensor");
  m.def("training_loss(Tensor student_logits, Tensor teacher_logits, Tensor target, " GKD_FACTORS
            GKD_SETTINGS GKD_TRAINING("1.0") ") -> " GKD_PARTS);
  // The settings are those of loss; what does not choose the group is not used.
  m.def("group(" GKD_LOGITS "=None, bool return_mask=False, " GKD_SETTINGS
        ") -> (Tensor size, Tensor mass_teacher, Tensor mass_student, Tensor cut, "
        "Tensor primary, Tensor binary, Tensor secondary, Tensor mask)");
  // The reduced loss; its gradient [B, C] in the student's dtype, divided by grad_scale, [0]
  // without need_grad; grad_scale [], a power of two (math/loss.h).
  // Both parts, reduced too, or [0] without need_parts.
  m.def("_forward(" GKD_LOGITS
        ", bool need_grad=True, bool need_parts=False, " GKD_FACTORS GKD_ALL_SETTINGS
        ") -> (Tensor loss, Tensor gradient, Tensor grad_scale, Tensor cross_entropy, "
        "Tensor distillation)");
  // [] int64 on the logits' device; see csrc/adaptive.cpp.
  m.def("adaptive_group_size(Tensor student_logits, float rate=0.93, int step=100) -> Tensor");
  // Throws IndexError at the first target that is neither a class nor ignore_index. Synchronises.
  m.def("_check_target(Tensor target, SymInt classes, int ignore_index=-100) -> ()");
  // The instruction set that the CPU backend runs on this machine.
  m.def("_cpu_capability() -> str");
  // gradient[b, c] * (grad_output[b] * grad_scale) in at least float32, rounded once; grad_output
  // is [] or [B].
  m.def("_scale(Tensor gradient, Tensor grad_output, Tensor grad_scale) -> Tensor");
  // The same in place, for a contiguous gradient that nobody needs afterwards. A backend may
  // lack it.
  m.def("_scale_(Tensor(a!) gradient, Tensor grad_output, Tensor grad_scale) -> ()");
  // A copy of a [] loss whose gradient with respect to `features` and `weight` is known already.
  m.def(
      "_with_gradients(Tensor loss, Tensor features, Tensor weight, Tensor? features_gradient, "
      "Tensor? weight_gradient) -> Tensor");
}
