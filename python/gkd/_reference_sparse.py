"""`gkd.reference.sparse_loss`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._reference_terms import INF, Side, binary_divergence, divergence, side_of
from ._settings import all_settings, call_op, takes_settings_of
from .functional import check_tensors, loss
from .sparse import SparseSettings, check_group
from .teacher import TeacherGroup

_NAME = "gkd.reference.sparse_loss"


def _check(
    student_logits: Tensor, group: TeacherGroup, target: Tensor | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """The operator's own checks, on meta tensors, which no transform wraps; all settings."""
    check_tensors(_NAME, student_logits, student_logits, target)
    check_group(_NAME, group)

    def shadow(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    plain = all_settings(_NAME, settings)
    shadows = [shadow(x) for x in (student_logits, *group)]
    classes = None if target is None else shadow(target)
    call_op(_NAME, torch.ops.gkd._sparse_forward, *shadows, classes, False, **plain)
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
    plain = _check(student_logits, teacher_group, target, dict(settings))
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
