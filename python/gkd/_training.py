"""The settings that training_loss has beside those of gkd.loss: types, and what may be given.

Margin and distillation weight may be tensors, which are passed on as they are: their values are
read on the device, so that a changed one needs neither a wait nor another compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ._settings import FLAG, NUMBER, AllSettings, LossSettings, is_dtensor, plain


class TrainingLoss(NamedTuple):
    """What `gkd.training_loss` returns, each a scalar, or [...] with reduction "none".

    Attributes:
        total: cross_entropy_weight * cross_entropy + distillation_weight * distillation; the only
            one that is differentiable.
        cross_entropy: without its weight, for logging; 0 where that is 0, since it is not computed
            then.
        distillation: what `gkd.loss` gives, without ``distillation_weight``, for logging.
    """

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


class HeadSettings(TypedDict, total=False):
    """The keywords that every training loss has beside those of `gkd.loss`."""

    cross_entropy_weight: float
    distillation_weight: float | Tensor
    margin: float | Tensor
    distill_margin: bool


class TrainingSettings(HeadSettings, total=False):
    """With the scale, for which the linear losses have a default of their own."""

    scale: float


class TrainingLossSettings(LossSettings, TrainingSettings, total=False):
    """The keywords of `gkd.training_loss` that its siblings take too, with the same meaning."""


class LinearTrainingSettings(LossSettings, HeadSettings, total=False):
    """Those that the linear training losses take."""


class AllTrainingSettings(AllSettings, TrainingSettings, total=False):
    """Every keyword of `gkd.training_loss`."""


_SCHEMA = torch.ops.gkd.training_loss.default._schema.arguments
TRAINING_DEFAULTS: dict[str, Any] = {
    x.name: x.default_value for x in _SCHEMA if x.name in TrainingSettings.__annotations__
}
#: What `_forward` takes where a call is none of training_loss.
OFF: dict[str, Any] = {**TRAINING_DEFAULTS, "cross_entropy_weight": 0.0}


@dataclass(frozen=True)
class Training:
    """Settings as the operators take them: plain values, and the tensors among them."""

    settings: dict[str, Any]
    margins: Tensor | None = None  #: [...]
    distillation_factor: Tensor | None = None  #: []

    def arguments(self) -> dict[str, Any]:
        """All of them, by the operators' names."""
        return {
            **self.settings,
            "margins": self.margins,
            "distillation_factor": self.distillation_factor,
        }


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of `gkd.loss`, and those that `training_of` takes."""
    training = {k: v for k, v in settings.items() if k in TRAINING_DEFAULTS}
    return {k: v for k, v in settings.items() if k not in training}, training


def training_of(name: str, rows: Any, given: Mapping[str, Any]) -> Training:
    """What the caller of the function ``name`` gives, and defaults; ``rows``: the targets' shape.

    Raises:
        TypeError: naming the first setting that does not fit.
    """
    numbers = dict(TRAINING_DEFAULTS)
    tensors: dict[str, Tensor | None] = {"margin": None, "distillation_weight": None}
    for key, value in given.items():
        if key not in tensors or not isinstance(value, Tensor):
            kind = FLAG if key == "distill_margin" else NUMBER
            numbers[key] = plain(name, key, value, kind)
        elif is_dtensor(value):
            raise TypeError(f"{name}: {key} is a DTensor: pass {key}.full_tensor()")
        else:
            tensors[key] = value
    margins = tensors["margin"]
    if margins is not None and margins.dim() == 0:
        margins = margins.expand(rows)
    return Training(numbers, margins, tensors["distillation_weight"])
