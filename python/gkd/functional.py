"""gkd.loss and gkd.group: the operators with types and documentation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Per-row diagnostics, each of shape [B] but for ``mask``."""

    size: Tensor  #: int64, classes in the primary group
    mass_teacher: Tensor  #: P, the group's softened teacher probability
    mass_student: Tensor  #: Q, the same for the student
    cut: Tensor  #: smallest ranking logit in the group, +inf where it is empty
    primary: Tensor  #: Primary-KD, unweighted and without T^2
    binary: Tensor  #: Binary-KD
    secondary: Tensor  #: Secondary-KD
    mask: Tensor  #: bool [B, C] when asked for, else [0]


def _threshold(name: str, threshold: float | None, group_size: int | None) -> float:
    if threshold is not None and group_size is not None:
        raise ValueError(
            f"gkd::{name}: give one of threshold and group_size, got threshold {threshold} "
            f"and group_size {group_size}"
        )
    return 0.93 if threshold is None else threshold


def loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    primary_weight: float = 8.0,
    binary_weight: float = 1.0,
    secondary_weight: float = 0.0,
    coupled: bool = False,
    rank_by: str = "teacher",
    reduction: str = "mean",
    ignore_index: int = -100,
    method: str = "auto",
) -> Tensor:
    """Grouped Knowledge Distillation loss (arXiv 2304.04462, equations of Section 3).

    Per row, T^2 (w_b Binary-KD + w_p Primary-KD + w_s Secondary-KD), where the primary group is the
    shortest run of the ranked classes whose softened mass reaches ``threshold`` (0.93 unless
    ``group_size`` fixes its size), ties at the cut and the target included.

    Args:
        student_logits: [B, C], float16, bfloat16, float32 or float64.
        teacher_logits: the same shape and device; must not require grad.
        target: int64 or int32 [B], joins its row's group; rows with ``ignore_index`` do not count.
        threshold: in (0, 1]. group_size: >= 0; give one of the two.
        temperature: in [1e-6, 1e6].
        reduction: "mean" over counted rows (0 when there are none), "sum" or "none".

    Returns:
        A scalar, or [B] with reduction "none"; float32, float64 for float64 logits.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: naming the argument.
    """
    return torch.ops.gkd.loss(  # type: ignore[no-any-return]
        student_logits,
        teacher_logits,
        target,
        threshold=_threshold("loss", threshold, group_size),
        group_size=group_size,
        temperature=temperature,
        primary_weight=primary_weight,
        binary_weight=binary_weight,
        secondary_weight=secondary_weight,
        coupled=coupled,
        rank_by=rank_by,
        reduction=reduction,
        ignore_index=ignore_index,
        method=method,
    )


def group(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    rank_by: str = "teacher",
    ignore_index: int = -100,
    return_mask: bool = False,
    method: str = "auto",
) -> Group:
    """The grouping that :func:`loss` would use: sizes, masses, cuts and the unweighted terms."""
    with torch.no_grad():
        parts = torch.ops.gkd.group(
            student_logits,
            teacher_logits,
            target,
            threshold=_threshold("group", threshold, group_size),
            group_size=group_size,
            temperature=temperature,
            rank_by=rank_by,
            ignore_index=ignore_index,
            return_mask=return_mask,
            method=method,
        )
    return Group(*parts)
