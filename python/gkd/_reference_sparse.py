"""`gkd.reference.sparse_loss` and `gkd.reference.training_sparse_loss`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._reference_head import with_cross_entropy
from ._reference_terms import INF, Side, binary_divergence, divergence, side_of
from ._settings import all_settings, call_op, takes_settings_of
from ._training import Training, TrainingLoss, split_settings, training_of
from .functional import check_tensors, loss
from .sparse import SparseSettings, SparseTrainingSettings, check_group
from .sparse import training_sparse_loss as fused_training_sparse_loss
from .teacher import TeacherGroup
from .training import check_target_is_given

_NAME = "gkd.reference.sparse_loss"
_TRAINING = "gkd.reference.training_sparse_loss"


def _check(
    name: str,
    student_logits: Tensor,
    group: TeacherGroup,
    target: Tensor | None,
    settings: dict[str, Any],
    training: Training | None = None,
) -> dict[str, Any]:
    """The operator's own checks, on meta tensors, which no transform wraps; all settings."""
    check_tensors(name, student_logits, student_logits, target)
    check_group(name, group)

    def shadow(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    plain = all_settings(name, settings)
    more = {} if training is None else training.arguments()
    shadows = [shadow(x) for x in (student_logits, *group, target)]
    given = {key: shadow(value) for key, value in more.items()}
    call_op(name, torch.ops.gkd._sparse_forward, *shadows, False, **plain, **given)
    return plain


def _dense(group: TeacherGroup, rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """bool [B, C], the groups; [B, C], their logits, 0 elsewhere."""
    indptr, indices = group.indptr, group.indices.long()
    row = torch.repeat_interleave(torch.arange(rows, device=indptr.device), indptr.diff())
    inside = torch.zeros((rows, classes), dtype=torch.bool, device=indptr.device)
    logits = torch.zeros((rows, classes), dtype=dtype, device=indptr.device)
    inside[row, indices] = True
    logits[row, indices] = group.logits.detach().to(dtype)
    return inside, logits


@takes_settings_of(loss, SparseSettings)
def sparse_loss(
    student_logits: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor | None = None,
    **settings: Unpack[SparseSettings],
) -> Tensor:
    """`gkd.sparse_loss` in plain PyTorch, on any device, differentiable any number of times.

    Arguments, result and errors are those of `gkd.sparse_loss`, but for the group's values, which
    are not checked: a target outside its row's group gives its row NaN.

    Args:
        student_logits: as in `gkd.sparse_loss`, on any device.
        teacher_group: as in `gkd.sparse_loss`.
        target: as in `gkd.sparse_loss`.
        **settings: as in `gkd.sparse_loss`.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where the student or the
        group's logits are.

    Examples:
        >>> student = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
        >>> kept = gkd.teacher_group(torch.randn(2, 9, dtype=torch.float64))
        >>> torch.autograd.gradgradcheck(lambda s: gkd.reference.sparse_loss(s, kept), student)
        True
    """
    plain = _check(_NAME, student_logits, teacher_group, target, dict(settings))
    leading, classes = student_logits.shape[:-1], student_logits.shape[-1]
    rows = math.prod(leading)
    dtype = torch.promote_types(student_logits.dtype, teacher_group.logits.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inside, teacher = _dense(teacher_group, rows, classes, dtype)
    student, rest = student_logits.reshape(rows, classes).to(dtype), teacher_group.rest.to(dtype)
    seen = student.detach()
    finite = ((teacher > -INF) & inside).any(1) | (rest > -INF)
    invalid = ~(seen < INF).all(1) | (seen == -INF).all(1) | ~(rest < INF) | ~finite
    invalid = invalid | ~(teacher < INF).all(1)
    ignored = torch.zeros_like(invalid)
    if target is not None:
        target = target.reshape(rows).long()
        ignored = target == plain["ignore_index"]
        held = inside.gather(1, target.clamp(0, classes - 1).unsqueeze(1)).squeeze(1)
        invalid = (invalid | ~held | (target < 0) | (target >= classes)) & ~ignored
    # An invalid row is multiplied by NaN, for a gradient of NaN too; an ignored one is replaced.
    factor = torch.where(invalid, float("nan"), 1.0).to(dtype)
    student = torch.where(ignored.unsqueeze(1), 0.0, student * factor.unsqueeze(1))

    temperature = plain["temperature"]
    groups = (inside, ~inside)
    students = (side_of(student, groups[0], temperature), side_of(student, groups[1], temperature))
    own = side_of(teacher, inside, temperature)
    zero = torch.zeros_like(own.top)
    teachers = (own, Side(zero, torch.zeros_like(teacher), rest.unsqueeze(1)))
    both = groups[0].any(1) & groups[1].any(1)
    binary, mass = binary_divergence(students, teachers, both, temperature)
    total = factor - factor  # 0, or NaN in an invalid row for any weights
    if plain["binary_weight"] != 0:
        total = total + plain["binary_weight"] * binary
    if plain["primary_weight"] != 0:
        term = plain["primary_weight"] * divergence(students[0], own, inside)
        total = total + (torch.where(both, mass, 1.0) * term if plain["coupled"] else term)
    total = torch.where(ignored, 0.0, temperature**2 * total)
    if plain["reduction"] == "none":
        return total.reshape(leading)
    count = (~ignored).sum().clamp(min=1) if plain["reduction"] == "mean" else 1
    return total.sum() / count


@takes_settings_of(fused_training_sparse_loss, SparseTrainingSettings)
def training_sparse_loss(
    student_logits: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor,
    **settings: Unpack[SparseTrainingSettings],
) -> TrainingLoss:
    """`gkd.training_sparse_loss` in plain PyTorch, on any device, as `gkd.reference.sparse_loss`.

    Args:
        student_logits: as in `gkd.training_sparse_loss`, on any device.
        teacher_group: as in `gkd.training_sparse_loss`.
        target: as in `gkd.training_sparse_loss`.
        **settings: as in `gkd.training_sparse_loss`.

    Returns:
        A `gkd.TrainingLoss`, all of which is differentiable.

    Examples:
        >>> student, target = torch.rand(2, 9, dtype=torch.float64), torch.tensor([3, 0])
        >>> kept = gkd.teacher_group(16.0 * torch.rand(2, 9).double(), target)
        >>> head = {"scale": 16.0, "margin": 0.2}
        >>> want = gkd.reference.training_sparse_loss(student, kept, target, **head)
        >>> got = gkd.training_sparse_loss(student, kept, target, **head)
        >>> torch.allclose(got.total, want.total)
        True
    """
    check_target_is_given(_TRAINING, target)
    of_loss, head = split_settings(settings)
    training = training_of(_TRAINING, target.shape, head)
    plain = _check(_TRAINING, student_logits, teacher_group, target, of_loss, training)
    dtype = torch.promote_types(student_logits.dtype, teacher_group.logits.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rowwise: Any = {**of_loss, "reduction": "none"}
    scaled = training.settings["scale"] * student_logits.to(dtype)
    distillation = sparse_loss(scaled, teacher_group, target, **rowwise)
    return with_cross_entropy(student_logits.to(dtype), target, distillation, training, plain)
