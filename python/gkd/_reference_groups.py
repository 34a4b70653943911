"""`gkd.reference.teacher_group`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._reference_terms import INF, primary_group
from ._settings import INTEGER, plain
from .teacher import TeacherGroup, grouping_of

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_IGNORED = -100


def _precise(logits: Tensor) -> Tensor:
    """In float64; MPS has nothing wider than float32."""
    return logits if logits.device.type == "mps" else logits.double()


def teacher_group(
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    group_temperature: float | None = None,
    dtype: torch.dtype | None = None,
    max_classes: int | None = None,
) -> TeacherGroup:
    """The primary groups of a teacher as a `gkd.TeacherGroup`, in plain PyTorch.

    The groups are those of `gkd.loss` with ``rank_by="teacher"``: a full sort of every row finds
    them, and the device is waited for. Nothing of it is differentiable.

    Args:
        teacher_logits: [..., C], float16, bfloat16, float32 or float64; the leading dimensions are
            rows, B in all.
        target: int64 or int32 [...], a class per row, which joins its row's group; -100 for a row
            without one.
        threshold: as in `gkd.loss`.
        group_size: as in `gkd.loss`.
        temperature: as in `gkd.loss`: T, at which ``rest`` is summed.
        group_temperature: as in `gkd.loss`.
        dtype: of the logits that are kept; the teacher's own unless given. Groups and ``rest`` are
            those of the logits before they are rounded.
        max_classes: the largest group, counting ties and the target, that is not an error.

    Returns:
        A `gkd.TeacherGroup` on the logits' device; on MPS, which has no float64, with ``rest`` in
        float32.

    Raises:
        ValueError: a shape or a setting that does not fit, or a group of more than ``max_classes``.
        TypeError: a dtype that is not supported.
        IndexError: a target that is neither a class nor -100.

    Examples:
        >>> teacher = torch.tensor([[8.0, 7.0, 0.0, -1.0]])
        >>> found = gkd.reference.teacher_group(teacher, temperature=1.0, dtype=torch.float16)
        >>> found.indices.tolist(), found.logits.tolist(), round(found.rest.item(), 4)
        ([0, 1], [8.0, 7.0], 0.3133)
    """
    name = "gkd.reference.teacher_group"
    _check(name, teacher_logits, target, dtype)
    given = grouping_of(name, threshold, group_size, temperature, group_temperature)
    if max_classes is not None:
        max_classes = plain(name, "max_classes", max_classes, INTEGER)
    dtype = teacher_logits.dtype if dtype is None else dtype
    rows = math.prod(teacher_logits.shape[:-1])
    own = teacher_logits.detach().reshape(rows, teacher_logits.shape[-1])
    wide = own if own.dtype == torch.float64 else own.float()
    kept = own.to(dtype)
    # `kept`: what its dtype cannot hold is +inf there.
    invalid = ~(wide < INF).all(1) | (wide == -INF).all(1) | (kept == INF).any(1)
    inside = primary_group(wide, given.threshold, given.group_size, given.group_temperature)
    if target is not None:
        inside = inside | _chosen(name, target.reshape(rows), own.shape[1])
    inside = inside & ~invalid.unsqueeze(1)
    sizes = inside.sum(1)
    if max_classes is not None and bool((sizes > max_classes).any()):
        row = int((sizes > max_classes).nonzero()[0])
        raise ValueError(
            f"{name}: the group of row {row} has {int(sizes[row])} classes, more than "
            f"max_classes = {max_classes}"
        )
    outside = torch.where(inside, -INF, _precise(wide) / given.temperature)
    rest = torch.where(invalid, float("nan"), outside.logsumexp(1))
    return TeacherGroup(
        torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
        inside.nonzero()[:, 1].int(),
        kept[inside],
        rest,
    )


def _check(
    name: str, teacher_logits: Tensor, target: Tensor | None, dtype: torch.dtype | None
) -> None:
    if not isinstance(teacher_logits, Tensor):
        raise TypeError(
            f"{name}: teacher_logits must be a Tensor, got {type(teacher_logits).__name__}"
        )
    if teacher_logits.dim() == 0 or teacher_logits.shape[-1] == 0:
        raise ValueError(
            f"{name}: teacher_logits must be [..., C] with at least one class, got "
            f"{list(teacher_logits.shape)}"
        )
    for argument, value in (("teacher_logits", teacher_logits.dtype), ("dtype", dtype)):
        if value is not None and value not in _DTYPES:
            raise TypeError(
                f"{name}: {argument} must be float16, bfloat16, float32 or float64, got {value}"
            )
    if target is None:
        return
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be a Tensor or None, got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: target must be int64 or int32, got {target.dtype}")
    if target.shape != teacher_logits.shape[:-1]:
        raise ValueError(
            f"{name}: target must be {list(teacher_logits.shape[:-1])}, got {list(target.shape)}"
        )


def _chosen(name: str, target: Tensor, classes: int) -> Tensor:
    """bool [B, C]: each row's target."""
    wrong = ((target < 0) | (target >= classes)) & (target != _IGNORED)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise IndexError(
            f"{name}: target of row {row} must be in [0, {classes}) or {_IGNORED}, got "
            f"{int(target[row])}"
        )
    return torch.arange(classes, device=target.device) == target.unsqueeze(1)
