// Every schema of the project. Kernels register themselves beside their definition.
#include <torch/library.h>

#define GKD_GROUPING                                                                     \
  "float threshold=0.93, int? group_size=None, float temperature=4.0, "                  \
  "float primary_weight=8.0, float binary_weight=1.0, float secondary_weight=0.0, "      \
  "bool coupled=False, str rank_by=\"teacher\", "

TORCH_LIBRARY(gkd, m) {
  m.def(
      "loss(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, " GKD_GROUPING
      "str reduction=\"mean\", int ignore_index=-100) -> Tensor");
  m.def(
      "group(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, " GKD_GROUPING
      "int ignore_index=-100, bool return_mask=False) -> (Tensor size, Tensor mass_teacher, "
      "Tensor mass_student, Tensor cut, Tensor primary, Tensor binary, Tensor secondary, "
      "Tensor mask)");
  // Losses per row [B], and the gradient [B, C] of their sum in the student's dtype, multiplied by
  // the headroom; [0] without need_grad.
  m.def(
      "_forward(Tensor student_logits, Tensor teacher_logits, Tensor? target, *, " GKD_GROUPING
      "int ignore_index=-100, bool need_grad=True) -> (Tensor loss, Tensor gradient)");
  // gradient[b, c] * (row_scale[b] * factor), in at least float32, rounded once.
  m.def("_scale(Tensor gradient, Tensor row_scale, float factor) -> Tensor");
}
