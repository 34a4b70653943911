"""gkd.group and gkd.adaptive_group_size: which classes the loss would group, and how many."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._settings import (
    DEFAULTS,
    FLAG,
    INTEGER,
    NUMBER,
    call_op,
    is_dtensor,
    plain,
    plain_settings,
    takes_settings_of,
)
from ._training import Training, TrainingLossSettings, split_settings, training_of
from .functional import check_on_meta, check_tensors
from .training import training_loss


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


@takes_settings_of(training_loss, TrainingLossSettings)
def group(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    return_mask: bool = False,
    method: Literal["auto", "sort", "select"] = "auto",
    **settings: Unpack[TrainingLossSettings],
) -> Group:
    """The grouping that `gkd.loss` or `gkd.training_loss` would use: sizes, masses, cuts and the
    unweighted terms.

    For a look at training, or to choose a threshold. It costs about a forward, and nothing of it is
    differentiable. With ``distill_margin`` and a margin it also copies both networks' logits, in
    float32 (float64 for float64), to put the margin in; a ``scale`` takes no copy.

    Args:
        student_logits: as in `gkd.loss`.
        teacher_logits: as in `gkd.loss`.
        target: as in `gkd.loss`; needed with a margin.
        return_mask: also make the bool [..., C] mask of the groups.
        method: as in `gkd.loss`.
        **settings: as in `gkd.training_loss`, so that one dict serves both. Weights and reduction
            have no part in it, nor has a margin without ``distill_margin``. Temperatures divided by
            the scale must be in [1e-6, 1e6] too.

    Returns:
        A `gkd.Group`, one entry per row in each field; the cut is one of the scaled logits.

    Raises:
        ValueError: as in `gkd.training_loss`, as are the other errors.

    Examples:
        >>> teacher = torch.tensor([[8.0, 7.0, 0.0, -1.0]])
        >>> found = gkd.group(torch.zeros(1, 4), teacher, temperature=1.0, return_mask=True)
        >>> found.size.item(), found.cut.item(), found.mask.tolist()
        (2, 7.0, [[True, True, False, False]])
    """
    name = "gkd.group"
    check_tensors(name, student_logits, teacher_logits, target)
    of_loss, head = split_settings(settings)
    given = plain_settings(name, {**of_loss, "method": method})
    with_mask = plain(name, "return_mask", return_mask, FLAG)
    scale = 1.0
    if head:
        training = training_of(name, student_logits.shape[:-1], head)
        # Checked as training_loss checks them, but cross-entropy, which may have no target here.
        checked = {**given, **training.arguments(), "cross_entropy_weight": 0.0}
        check_on_meta(name, student_logits, teacher_logits, target, checked)
        scale = training.settings["scale"]
        has_margin = training.margins is not None or training.settings["margin"] != 0
        if has_margin and training.settings["distill_margin"]:
            student_logits = _with_margin(student_logits, target, training)
            teacher_logits = _with_margin(teacher_logits, target, training)
    if scale != 1:  # logits times a number are the logits over temperatures divided by it
        for key in ("temperature", "group_temperature"):
            value = given.get(key, DEFAULTS[key])
            if value is not None:
                given[key] = value / scale
    with torch.no_grad():
        columns = call_op(
            name, torch.ops.gkd.group, student_logits, teacher_logits, target, with_mask, **given
        )
    group = Group(*columns)
    if scale != 1:
        group = group._replace(cut=group.cut * scale)
    return group if with_mask else group._replace(mask=None)


@torch.no_grad()
def _with_margin(logits: Tensor, target: Tensor | None, training: Training) -> Tensor:
    """A copy in at least float32, the targets' logits lowered; rows without a class as they are."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    copy = logits.to(dtype, copy=True)
    if target is None:
        return copy
    margins = training.margins
    if margins is None:
        margins = torch.full_like(copy[..., 0], training.settings["margin"])
    own = target.long().clamp(0, logits.shape[-1] - 1)
    # A margin that is no number makes its row NaN, also where it would give -inf.
    lowered = torch.where(margins.isfinite(), margins.to(dtype), float("nan"))
    lowered = torch.where(own == target, -lowered, 0.0)
    return copy.scatter_add_(-1, own.unsqueeze(-1), lowered.unsqueeze(-1))


def adaptive_group_size(
    student_logits: Tensor,
    rate: float = 0.93,
    step: int = 100,
    *,
    target: Tensor | None = None,
    scale: float = 1.0,
    margin: float | Tensor = 0.0,
) -> Tensor:
    """One group size for a whole batch, as the paper's authors choose it.

    The least n, in steps of ``step`` and at most C, for which the n largest of the batch-summed
    probabilities ``softmax(scale * (student_logits - margin at the target))`` (temperature 1) reach
    ``rate`` of the batch. A scale or a margin takes a copy of the logits, in float32 (float64 for
    float64).

    Args:
        student_logits: [..., C], float16, bfloat16, float32 or float64.
        rate: share of the batch's probability, in (0, 1].
        step: what n is a multiple of, unless it is C; >= 1.
        target: int64 or int32 [...], needed with a margin, and of no use without.
        scale: as in `gkd.training_loss`.
        margin: as in `gkd.training_loss`; the authors have it in the logits here.

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
    op = torch.ops.gkd.adaptive_group_size
    with torch.no_grad():
        if isinstance(margin, Tensor) or scale != 1 or margin != 0:
            check_tensors(name, student_logits, student_logits, target)
            call_op(name, op, student_logits.to("meta"), *given)  # its own checks come first
            head = {"scale": scale, "margin": margin}
            training = training_of(name, student_logits.shape[:-1], head)
            checked = {**training.arguments(), "cross_entropy_weight": 0.0}
            check_on_meta(name, student_logits, student_logits, target, checked)
            student_logits = _with_margin(student_logits, target, training)
            student_logits.mul_(training.settings["scale"])
        size: Tensor = call_op(name, op, student_logits, *given)
    return size
