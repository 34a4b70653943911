"""What the references of both training losses have beside the distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._training import Training, TrainingLoss


def _margins(logits: Tensor, target: Tensor, training: Training) -> Tensor:
    """[..., 1] in the logits' dtype; one that is no number is NaN."""
    given, margins = training.settings["margin"], training.margins
    off = torch.tensor(given, dtype=logits.dtype) if margins is None else margins.to(logits.dtype)
    off = off.to(target.device)
    return torch.where(torch.isfinite(off), off, float("nan")).expand(target.shape).unsqueeze(-1)


def lowered(logits: Tensor, target: Tensor, training: Training) -> Tensor:
    """The logits with the margin on each row's target."""
    classes = torch.arange(logits.shape[-1], device=target.device)
    off = _margins(logits, target, training)
    return torch.where(classes == target.unsqueeze(-1), logits - off, logits)


def with_cross_entropy(
    student: Tensor,
    target: Tensor,
    distillation: Tensor,
    training: Training,
    plain: dict[str, Any],
) -> TrainingLoss:
    """The whole loss from the student's logits in its dtype and each row's distillation."""
    given = training.settings
    ignored = target == plain["ignore_index"]
    off = _margins(student, target, training)
    # A row with a margin of NaN is NaN, though the terms may not have it.
    distillation = distillation + torch.where(ignored, 0.0, (off - off).squeeze(-1).detach())
    cross_entropy = torch.zeros_like(distillation)
    if given["cross_entropy_weight"] != 0:
        finished = given["scale"] * lowered(student, target, training)
        finished = torch.where(ignored.unsqueeze(-1), 0.0, finished)
        last = student.shape[-1] - 1
        index = torch.where(ignored, 0, target).long().clamp(0, last).unsqueeze(-1)
        rows = finished.logsumexp(-1) - finished.gather(-1, index).squeeze(-1)
        # NaN for the rows that are NaN in the distillation.
        zero = torch.where(distillation.detach().isnan(), distillation.detach(), 0.0)
        cross_entropy = torch.where(ignored, 0.0, rows + zero)
    weight = training.distillation_factor
    weight = given["distillation_weight"] if weight is None else weight.to(student.dtype)
    parts = (cross_entropy, distillation)
    if plain["reduction"] != "none":
        count = (~ignored).sum().clamp(min=1) if plain["reduction"] == "mean" else 1
        parts = (cross_entropy.sum() / count, distillation.sum() / count)
    total = torch.zeros_like(parts[0])
    if given["cross_entropy_weight"] != 0:
        total = total + given["cross_entropy_weight"] * parts[0]
    if isinstance(weight, Tensor) or weight != 0:
        total = total + weight * parts[1]
    return TrainingLoss(total, *parts)
