"""gkd.loss: the operator with types and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ._settings import DEFAULTS, FLAG, call_op, is_dtensor, plain, plain_settings


def check_tensors(
    name: str,
    student_logits: object,
    teacher_logits: object,
    target: object = None,
    first: str = "student_logits",
) -> None:
    """TypeError in one line: the dispatcher's own would print every value of a list or array.

    ``first``: the name of the first logits, where they are not the student's.
    """
    for argument, value in ((first, student_logits), ("teacher_logits", teacher_logits)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {_kind(value)}")
        if is_dtensor(value):
            raise TypeError(
                f"{name}: {argument} is a DTensor: pass {argument}.to_local() where it is "
                f"split by rows, {argument}.full_tensor() for the whole of it, or call "
                "gkd.distributed.loss where it is split by classes"
            )
    if target is None:
        return
    if is_dtensor(target):
        raise TypeError(f"{name}: target is a DTensor: pass target.to_local()")
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{name}: target must be a Tensor or None, got {_kind(target)}; "
            "settings are given by keyword, as in temperature=4.0"
        )


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def check_on_meta(
    name: str,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    settings: Mapping[str, Any],
    need_parts: bool = False,
) -> None:
    """The operator's own checks, without a computation: of all settings, by its names."""

    def shadow(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    shadows = map(shadow, (student, teacher, target))
    more = {k: shadow(v) for k, v in settings.items()}
    call_op(name, torch.ops.gkd._forward, *shadows, False, need_parts, **more)


def loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float | None = None,
    group_size: int | None = None,
    group_temperature: float | None = None,
    temperature: float = 4.0,
    primary_weight: float = 8.0,
    binary_weight: float = 1.0,
    secondary_weight: float = 0.0,
    coupled: bool = False,
    rank_by: Literal["teacher", "student"] = "teacher",
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_index: int = -100,
    method: Literal["auto", "sort", "select"] = "auto",
    check_target: bool = False,
) -> Tensor:
    """Grouped Knowledge Distillation loss (arXiv 2304.04462, Section 3).

    Per row, T^2 (w_b Binary-KD + w_p Primary-KD + w_s Secondary-KD). The primary group is the
    shortest run of the classes in descending order of the ranking logits whose softened mass
    reaches ``threshold``, or the ``group_size`` largest; ties at the cut and the target belong to
    it. The forward makes the gradient too, and the backward scales it: differentiable once, with
    respect to the student. `gkd.reference.loss` serves beyond that.

    Args:
        student_logits: [..., C], float16, bfloat16, float32 or float64; any strides. The leading
            dimensions are rows.
        teacher_logits: the same shape and device, any of those dtypes; must not require grad.
        target: int64 or int32 [...], a class per row, which joins its row's group.
        threshold: mass of the primary group, in (0, 1]; 0.93 where neither it nor ``group_size``
            is given.
        group_size: the number of classes of the primary group, >= 0. Where both are given, the
            shorter of the two groups.
        group_temperature: T_g, of the softmax whose mass ``threshold`` bounds, in [1e-6, 1e6]; T
            unless given. It chooses the group alone: the terms have T.
        temperature: T, divides both networks' logits, in [1e-6, 1e6].
        primary_weight: w_p; a weight of 0 switches its term off, also where it is infinite. All
            three in [-1e30, 1e30].
        binary_weight: w_b.
        secondary_weight: w_s.
        coupled: multiply each group's KL by the group's teacher mass, as plain KD has it.
        rank_by: "teacher" or "student": whose logits choose the group.
        reduction: "mean" over counted rows (0 where there are none), "sum" or "none".
        ignore_index: a row with this target counts for nothing, even where it holds NaN: no loss,
            a gradient of 0, not in the mean.
        method: how the group's cut is found: "auto", "sort" or "select"; the result is the same.
        check_target: raise for a target out of bounds on CUDA too, which waits for the device.
            Without it such a row's loss and gradient are NaN. On the CPU it always raises.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where either input is.

    Raises:
        ValueError: a shape or a setting that does not fit, or a teacher that requires grad.
        TypeError: a dtype that is not supported.
        IndexError: a target that is neither a class nor ``ignore_index``.
        RuntimeError: tensors on several devices; NotImplementedError for a layout or a derivative
            that does not exist.

    Examples:
        >>> teacher = torch.tensor([[8.0, 7.0, 0.0, -1.0]])
        >>> student = torch.tensor([[6.0, 7.0, 1.0, 0.0]], requires_grad=True)
        >>> value = gkd.loss(student, teacher, torch.tensor([0]), temperature=1.0)
        >>> value.backward()
        >>> round(value.item(), 3), student.grad.shape
        (3.698, torch.Size([1, 4]))
    """
    return checked_loss(
        "gkd.loss",
        student_logits,
        teacher_logits,
        target,
        check_target,
        {
            "threshold": threshold,
            "group_size": group_size,
            "group_temperature": group_temperature,
            "temperature": temperature,
            "primary_weight": primary_weight,
            "binary_weight": binary_weight,
            "secondary_weight": secondary_weight,
            "coupled": coupled,
            "rank_by": rank_by,
            "reduction": reduction,
            "ignore_index": ignore_index,
            "method": method,
        },
    )


def checked_loss(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    check_target: bool,
    settings: Mapping[str, Any],
) -> Tensor:
    """`loss`, whose errors name the function ``name``."""
    check_tensors(name, student_logits, teacher_logits, target)
    given = plain_settings(name, settings)
    ops = torch.ops.gkd
    value: Tensor = call_op(name, ops.loss, student_logits, teacher_logits, target, **given)
    # After the loss, whose checks of shape and dtype come first.
    if plain(name, "check_target", check_target, FLAG) and target is not None:
        classes = student_logits.shape[-1]
        ignore_index = given.get("ignore_index", DEFAULTS["ignore_index"])
        call_op(name, ops._check_target, target, classes, ignore_index)
    return value
