"""The settings that training_loss has beside those of gkd.loss: types, and what may be given.

Margin and distillation weight may be tensors, which are passed on as they are: their values are
read on the device, so that a changed one needs neither a wait nor another compilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from ._settings import FLAG, NUMBER, AllSettings, is_dtensor, plain


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


class TrainingSettings(TypedDict, total=False):
    """The keywords of `gkd.training_loss` that its siblings take too, with the same meaning."""

    cross_entropy_weight: float
    distillation_weight: float | Tensor
    scale: float
    margin: float | Tensor
    distill_margin: bool


class AllTrainingSettings(AllSettings, TrainingSettings, total=False):
    """Every keyword of `gkd.training_loss`."""


#: What `_forward` takes where a call is none of training_loss.
OFF: dict[str, Any] = {
    "cross_entropy_weight": 0.0,
    "distillation_weight": 1.0,
    "scale": 1.0,
    "margin": 0.0,
    "distill_margin": False,
}


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


def training_of(
    name: str,
    rows: Any,
    cross_entropy_weight: float,
    distillation_weight: float | Tensor,
    scale: float,
    margin: float | Tensor,
    distill_margin: bool,
) -> Training:
    """What the caller of the function ``name`` gives; ``rows``: the shape of the targets.

    Raises:
        TypeError: naming the first setting that does not fit.
    """
    tensors: dict[str, Tensor | None] = {"margin": None, "distillation_weight": None}
    numbers = dict(OFF)
    for key, value in (("margin", margin), ("distillation_weight", distillation_weight)):
        if isinstance(value, Tensor):
            if is_dtensor(value):
                raise TypeError(f"{name}: {key} is a DTensor: pass {key}.full_tensor()")
            tensors[key] = value
        else:
            numbers[key] = plain(name, key, value, NUMBER)
    margins, factor = tensors["margin"], tensors["distillation_weight"]
    if margins is not None and margins.dim() == 0:
        margins = margins.expand(rows)
    numbers["cross_entropy_weight"] = plain(
        name, "cross_entropy_weight", cross_entropy_weight, NUMBER
    )
    numbers["scale"] = plain(name, "scale", scale, NUMBER)
    numbers["distill_margin"] = plain(name, "distill_margin", distill_margin, FLAG)
    return Training(numbers, margins, factor)
