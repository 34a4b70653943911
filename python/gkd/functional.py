"""gkd.loss and gkd.group: the operators with types and documentation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_THRESHOLD = 0.93


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


def default_threshold(name: str, threshold: float | None, group_size: int | None) -> float:
    if threshold is not None and group_size is not None:
        raise ValueError(
            f"gkd::{name}: give one of threshold and group_size, got threshold {threshold} "
            f"and group_size {group_size}"
        )
    return DEFAULT_THRESHOLD if threshold is None else threshold


def check_tensors(
    name: str, student_logits: object, teacher_logits: object, target: object = None
) -> None:
    """TypeError in one line: the dispatcher's own would print every value of a list or array."""
    given = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    for argument, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"gkd::{name}: {argument} must be a Tensor, got {_kind(value)}")
    if target is not None and not isinstance(target, Tensor):
        raise TypeError(
            f"gkd::{name}: target must be a Tensor or None, got {_kind(target)}; "
            "settings are given by keyword, as in temperature=4.0"
        )


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


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
    check_target: bool = False,
) -> Tensor:
    """Grouped Knowledge Distillation loss (arXiv 2304.04462, equations of Section 3).

    Per row, T^2 (w_b Binary-KD + w_p Primary-KD + w_s Secondary-KD), where the primary group is the
    shortest run of the ranked classes whose softened mass reaches ``threshold`` (0.93 unless
    ``group_size`` fixes its size), ties at the cut and the target included.

    Args:
        student_logits: [B, C], float16, bfloat16, float32 or float64.
        teacher_logits: the same shape and device; must not require grad.
        target: int64 or int32 [B], joins its row's group; rows with ``ignore_index`` do not count.
        threshold: mass of the primary group, in (0, 1]; 0.93 where group_size is not given either.
        group_size: the number of classes of the primary group, >= 0, instead of a threshold.
        temperature: softens both networks, in [1e-6, 1e6]; the loss carries its square.
        primary_weight: of Primary-KD; 0 switches a term off, whatever its value.
        binary_weight: of Binary-KD.
        secondary_weight: of Secondary-KD.
        coupled: multiply each group's KL by the group's teacher mass, as plain KD has it.
        rank_by: "teacher" or "student": whose logits choose the group.
        reduction: "mean" over counted rows (0 when there are none), "sum" or "none".
        ignore_index: rows with this target have no loss and no gradient, even where they hold NaN.
        method: how the group's cut is found: "auto", "sort" or "select"; the result is the same.
        check_target: raise IndexError for a target out of bounds on CUDA too, which waits for the
            device; without it such a row's loss and gradient are NaN. On the CPU it always raises.

    Returns:
        A scalar, or [B] with reduction "none"; float32, float64 for float64 logits.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: naming the argument.
    """
    check_tensors("loss", student_logits, teacher_logits, target)
    value: Tensor = torch.ops.gkd.loss(
        student_logits,
        teacher_logits,
        target,
        threshold=default_threshold("loss", threshold, group_size),
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
    # After the loss, whose checks of shape and dtype come first.
    if check_target and target is not None:
        torch.ops.gkd._check_target(target, student_logits.shape[1], ignore_index)
    return value


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
    check_tensors("group", student_logits, teacher_logits, target)
    with torch.no_grad():
        parts = torch.ops.gkd.group(
            student_logits,
            teacher_logits,
            target,
            threshold=default_threshold("group", threshold, group_size),
            group_size=group_size,
            temperature=temperature,
            rank_by=rank_by,
            ignore_index=ignore_index,
            return_mask=return_mask,
            method=method,
        )
    return Group(*parts)


def adaptive_group_size(student_logits: Tensor, rate: float = 0.93, step: int = 100) -> Tensor:
    """One group size for a whole batch, as the paper's authors choose it.

    The least n, in steps of ``step`` and at most C, for which the n largest of the batch-summed
    probabilities ``softmax(student_logits)`` (temperature 1) reach ``rate`` of the batch.

    Args:
        student_logits: [B, C], float16, bfloat16, float32 or float64.
        rate: in (0, 1]. step: >= 1.

    Returns:
        int64 [] on the logits' device. Nothing waits for the device until it is read, as in
        ``gkd.loss(..., group_size=int(gkd.adaptive_group_size(student)), rank_by="student")``.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    with torch.no_grad():
        size: Tensor = torch.ops.gkd.adaptive_group_size(student_logits, rate, step)
    return size
