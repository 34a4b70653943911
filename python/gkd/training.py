"""gkd.training_loss: cross-entropy and distillation of a head in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._settings import (
    DEFAULTS,
    FLAG,
    LossSettings,
    call_op,
    plain,
    plain_settings,
    takes_settings_of,
)
from ._training import TrainingLoss, training_of
from .functional import check_tensors, loss


@takes_settings_of(loss)
def training_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    distillation_weight: float | Tensor = 1.0,
    scale: float = 1.0,
    margin: float | Tensor = 0.0,
    distill_margin: bool = False,
    method: Literal["auto", "sort", "select"] = "auto",
    check_target: bool = False,
    **settings: Unpack[LossSettings],
) -> TrainingLoss:
    """The whole loss of a head in one pass: scale, margin, cross-entropy and `gkd.loss`.

    With x the logits and m the margin, s_j = scale x_j, and s'_j = scale (x_j - m) for the target,
    else s_j. Per row

        total = cross_entropy_weight CE(s') + distillation_weight GKD(s, u),

    where CE(s') = log sum_j exp(s'_j) - s'_target at temperature 1, and u are the teacher's logits,
    scaled too. The same as ``F.cross_entropy`` of a scaled copy with margins plus `gkd.loss` of
    another, of which neither is made: two reads and one write of [B, C].

    Args:
        student_logits: [..., C], cosines, or finished logits with a scale of 1; else as in
            `gkd.loss`.
        teacher_logits: as in `gkd.loss`, of the same kind as the student's.
        target: int64 or int32 [...], a class per row.
        cross_entropy_weight: 0 switches cross-entropy off, and its part is 0 then.
        distillation_weight: a number, or a [] tensor on the logits' device, which is read there: a
            warm-up needs no wait, no other compilation and no other CUDA graph.
        scale: multiplies both networks' logits, in [1e-6, 1e6]; 64 for most cosine heads.
        margin: a number (CosFace), or [...] floats, one per row (ArcFace, AdaFace), of which a NaN
            or an infinity makes its row NaN. A constant: neither it nor ``distillation_weight`` may
            require grad.
        distill_margin: the distillation has the margin in both networks' logits too, groups
            included, as the paper's authors train: GKD(s', u').
        method: as in `gkd.loss`.
        check_target: as in `gkd.loss`.
        **settings: as in `gkd.loss`. "mean" divides by the rows that count, as ``F.cross_entropy``
            does, but where none does the loss is 0, not NaN.

    Returns:
        A `gkd.TrainingLoss`: total, cross_entropy and distillation, reduced alike. The last two are
        detached and without their weights. A row whose target's logit is -inf has a loss of +inf.

    Raises:
        ValueError: as in `gkd.loss`, as are the other errors.

    Examples:
        >>> cosines = torch.rand(8, 100).mul(2).sub(1).requires_grad_()
        >>> teacher, target = torch.rand(8, 100), torch.randint(100, (8,))
        >>> loss = gkd.training_loss(cosines, teacher, target, scale=64.0, margin=0.4)
        >>> loss.total.backward()
        >>> torch.allclose(loss.total, loss.cross_entropy + loss.distillation)
        True
    """
    return checked_training_loss(
        "gkd.training_loss",
        student_logits,
        teacher_logits,
        target,
        check_target,
        {
            "cross_entropy_weight": cross_entropy_weight,
            "distillation_weight": distillation_weight,
            "scale": scale,
            "margin": margin,
            "distill_margin": distill_margin,
        },
        {**settings, "method": method},
    )


def checked_training_loss(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    check_target: bool,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> TrainingLoss:
    """`training_loss`, whose errors name the function ``name``."""
    check_tensors(name, student_logits, teacher_logits, target)
    check_target_is_given(name, target)
    given = {
        **plain_settings(name, settings),
        **training_of(name, target.shape, training).arguments(),
    }
    ops = torch.ops.gkd
    value = call_op(name, ops.training_loss, student_logits, teacher_logits, target, **given)
    # After the loss, whose checks of shape and dtype come first.
    if plain(name, "check_target", check_target, FLAG):
        classes = student_logits.shape[-1]
        ignore_index = given.get("ignore_index", DEFAULTS["ignore_index"])
        call_op(name, ops._check_target, target, classes, ignore_index)
    return TrainingLoss(*value)


def check_target_is_given(name: str, target: object) -> None:
    """TypeError where there is none."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be a Tensor, got {type(target).__name__}")
