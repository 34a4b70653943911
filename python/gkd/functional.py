"""gkd.loss and gkd.group: the operators with types and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._settings import (
    DEFAULTS,
    FLAG,
    INTEGER,
    NUMBER,
    LossSettings,
    call_op,
    is_dtensor,
    plain,
    plain_settings,
    takes_settings_of,
)


class Group(NamedTuple):
    """What `gkd.group` reports for each row.

    Floating-point fields have the dtype that the loss would have. A row that holds NaN or +inf, or
    that is ignored, has NaN in all of them.

    Attributes:
        size: int64 [...], classes in the primary group.
        mass_teacher: [...], P: the group's softened teacher probability.
        mass_student: [...], Q: the same of the student.
        cut: [...], smallest ranking logit in the group; +inf where no class has to reach it.
        primary: [...], Primary-KD, without its weight and without T^2.
        binary: [...], Binary-KD, likewise.
        secondary: [...], Secondary-KD, likewise, whether or not the loss would use it.
        mask: bool [..., C], True inside the group; None unless asked for.
    """

    size: Tensor
    mass_teacher: Tensor
    mass_student: Tensor
    cut: Tensor
    primary: Tensor
    binary: Tensor
    secondary: Tensor
    mask: Tensor | None


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


@takes_settings_of(loss)
def group(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    return_mask: bool = False,
    method: Literal["auto", "sort", "select"] = "auto",
    **settings: Unpack[LossSettings],
) -> Group:
    """The grouping that `gkd.loss` would use: sizes, masses, cuts and the unweighted terms.

    For a look at training, or to choose a threshold. It costs about a forward, and nothing of it is
    differentiable.

    Args:
        student_logits: as in `gkd.loss`.
        teacher_logits: as in `gkd.loss`.
        target: as in `gkd.loss`.
        return_mask: also make the bool [..., C] mask of the groups.
        method: as in `gkd.loss`.
        **settings: as in `gkd.loss`, so that one dict serves both. Weights and reduction have no
            part in it.

    Returns:
        A `gkd.Group`, one entry per row in each field.

    Raises:
        ValueError: as in `gkd.loss`, as are the other errors.

    Examples:
        >>> teacher = torch.tensor([[8.0, 7.0, 0.0, -1.0]])
        >>> found = gkd.group(torch.zeros(1, 4), teacher, temperature=1.0, return_mask=True)
        >>> found.size.item(), found.cut.item(), found.mask.tolist()
        (2, 7.0, [[True, True, False, False]])
    """
    name = "gkd.group"
    check_tensors(name, student_logits, teacher_logits, target)
    given = plain_settings(name, {**settings, "method": method})
    with_mask = plain(name, "return_mask", return_mask, FLAG)
    with torch.no_grad():
        columns = call_op(
            name, torch.ops.gkd.group, student_logits, teacher_logits, target, with_mask, **given
        )
    group = Group(*columns)
    return group if with_mask else group._replace(mask=None)


def adaptive_group_size(student_logits: Tensor, rate: float = 0.93, step: int = 100) -> Tensor:
    """One group size for a whole batch, as the paper's authors choose it.

    The least n, in steps of ``step`` and at most C, for which the n largest of the batch-summed
    probabilities ``softmax(student_logits)`` (temperature 1) reach ``rate`` of the batch.

    Args:
        student_logits: [..., C], float16, bfloat16, float32 or float64.
        rate: share of the batch's probability, in (0, 1].
        step: what n is a multiple of, unless it is C; >= 1.

    Returns:
        int64 [] on the logits' device. Nothing waits for the device until it is read.

    Raises:
        ValueError: a shape, ``rate`` or ``step`` that does not fit.
        TypeError: a dtype that is not supported.

    Examples:
        >>> student, teacher = torch.randn(4, 500), torch.randn(4, 500)
        >>> size = int(gkd.adaptive_group_size(student, rate=0.5, step=10))
        >>> value = gkd.loss(student, teacher, group_size=size, rank_by="student")
    """
    name = "gkd.adaptive_group_size"
    if is_dtensor(student_logits):
        raise TypeError(f"{name}: student_logits is a DTensor: pass student_logits.full_tensor()")
    given = (plain(name, "rate", rate, NUMBER), plain(name, "step", step, INTEGER))
    with torch.no_grad():
        size: Tensor = call_op(name, torch.ops.gkd.adaptive_group_size, student_logits, *given)
    return size
