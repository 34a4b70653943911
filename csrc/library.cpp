// Every schema of the project. Kernels register themselves beside their definition.
#include <torch/library.h>

#define GKD_GROUPING "float threshold=0.93, int? group_size=None, float temperature=4.0, "
#define GKD_LOSS                                                                    \
  GKD_GROUPING                                                                      \
  "float primary_weight=8.0, float binary_weight=1.0, float secondary_weight=0.0, " \
  "bool coupled=False, str rank_by=\"teacher\", str reduction=\"mean\", int ignore_index=-100, "

#define GKD_LOGITS "Tensor student_logits, Tensor teacher_logits, Tensor? target, "
#define GKD_SHARD "*, " GKD_LOSS "int class_start, int num_classes"

namespace {

/// One rank's part of a class-sharded call (csrc/sharded.cpp). The stages' own arguments come
/// between the target and the settings; math/shard.h says what travels, with [B] before it.
void define_sharded(torch::Library& m) {
  m.def("sharded_loss(" GKD_LOGITS "int world_size, str group_name, " GKD_SHARD ") -> Tensor");
  m.def("_sharded_forward(" GKD_LOGITS "int world_size, str group_name, bool need_grad, " GKD_SHARD
        ") -> (Tensor loss, Tensor gradient, Tensor weight)");
  // Throws what sharded_loss would, without a collective.
  m.def("_check_shard(" GKD_LOGITS GKD_SHARD ") -> ()");
  m.def("_shard_extremes(" GKD_LOGITS GKD_SHARD ") -> Tensor");
  m.def("_shard_counts(" GKD_LOGITS "Tensor extremes, " GKD_SHARD ") -> Tensor");
  // `search` is [0] before the first spread, and comes from _shard_narrow after it.
  m.def("_shard_amounts(" GKD_LOGITS "Tensor extremes, Tensor counts, Tensor search, " GKD_SHARD
        ") -> Tensor");
  m.def("_shard_narrow(" GKD_LOGITS "Tensor extremes, Tensor amounts, Tensor search, " GKD_SHARD
        ") -> (Tensor search, Tensor cut)");
  // cut: double [B], smallest ranking logit in the group.
  m.def("_shard_moments(" GKD_LOGITS "Tensor cut, " GKD_SHARD ") -> Tensor");
  // moments: all ranks', [W, B, 13]. gradient: [B, C_r], or [0] without need_grad.
  m.def("_shard_emit(" GKD_LOGITS "Tensor cut, Tensor moments, bool need_grad, " GKD_SHARD
        ") -> (Tensor gradient, Tensor kl)");
  m.def("_shard_loss(" GKD_LOGITS "Tensor moments, Tensor kl, " GKD_SHARD
        ") -> (Tensor loss, Tensor weight)");
}

}  // namespace

TORCH_LIBRARY(gkd, m) {
  define_sharded(m);
  m.def("loss(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, " GKD_LOSS
        "str method=\"auto\") -> Tensor");
  m.def(
      "group(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, " GKD_GROUPING
      "str rank_by=\"teacher\", int ignore_index=-100, bool return_mask=False, "
      "str method=\"auto\") -> (Tensor size, Tensor mass_teacher, Tensor mass_student, Tensor cut, "
      "Tensor primary, Tensor binary, Tensor secondary, Tensor mask)");
  // The reduced loss; the gradient [B, C] of the row losses in the student's dtype, scaled as
  // math/loss.h says (stored_scale, gradient_headroom), [0] without need_grad; and the weight [] of
  // the reduction.
  m.def(
      "_forward(Tensor student_logits, Tensor teacher_logits, Tensor? target, *, " GKD_LOSS
      "bool need_grad=True, str method=\"auto\") -> (Tensor loss, Tensor gradient, Tensor weight)");
  // [] int64 on the logits' device; see csrc/adaptive.cpp.
  m.def("adaptive_group_size(Tensor student_logits, float rate=0.93, int step=100) -> Tensor");
  // Throws IndexError at the first target that is neither a class nor ignore_index. Synchronises.
  m.def("_check_target(Tensor target, SymInt classes, int ignore_index=-100) -> ()");
  // The instruction set that the CPU backend runs on this machine.
  m.def("_cpu_capability() -> str");
  // gradient[b, c] * (grad_output[b] * later_scale(weight) * factor) in at least float32, rounded
  // once; grad_output is [] or [B].
  m.def("_scale(Tensor gradient, Tensor grad_output, Tensor weight, float factor) -> Tensor");
  // The same in place, for a gradient that nobody needs afterwards. A backend may lack it.
  m.def("_scale_(Tensor(a!) gradient, Tensor grad_output, Tensor weight, float factor) -> ()");
}
