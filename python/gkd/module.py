"""GKDLoss: gkd.loss as a module that keeps its settings."""

from __future__ import annotations

import inspect
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from ._settings import DEFAULT_THRESHOLD, LossSettings, takes_settings_of
from .functional import checked_loss, loss

#: Every keyword of gkd.loss: what a GKDLoss keeps.
SETTINGS = tuple(
    name for name, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY
)


class GKDLoss(nn.Module):
    """`gkd.loss` as a module that keeps its settings.

    The keywords are those of `gkd.loss`, with the same defaults, and each is an attribute of its
    name that may be changed between batches. They are checked at construction, not at the first
    batch. There are no parameters and no buffers.

    Raises:
        ValueError: a setting that does not fit.

    Examples:
        >>> criterion = gkd.GKDLoss(temperature=2.0)
        >>> value = criterion(torch.randn(4, 50), torch.randn(4, 50), torch.tensor([3, 0, 9, 49]))
        >>> criterion.primary_weight = 4.0
    """

    def __init__(
        self,
        *,
        threshold: float | None = None,
        group_size: int | None = None,
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
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.group_size = group_size
        self.temperature = temperature
        self.primary_weight = primary_weight
        self.binary_weight = binary_weight
        self.secondary_weight = secondary_weight
        self.coupled = coupled
        self.rank_by = rank_by
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.method = method
        self.check_target = check_target
        with torch.no_grad():
            logits = torch.empty((1, 1), device="meta")
            self(logits, logits)

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, as `gkd.loss` gives it.

        Args:
            student_logits: [..., C].
            teacher_logits: [..., C]; must not require grad.
            target: [...], a class per row.

        Returns:
            A scalar, or [...] with reduction "none".
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        check_target = settings.pop("check_target")
        return checked_loss(
            "gkd.GKDLoss", student_logits, teacher_logits, target, check_target, settings
        )

    @classmethod
    @takes_settings_of(loss)
    def kd(cls, **settings: Unpack[LossSettings]) -> Self:
        """Plain knowledge distillation (Hinton et al., arXiv 1503.02531): T^2 KL(p || q).

        Args:
            **settings: of `gkd.loss`.

        Examples:
            >>> criterion = gkd.GKDLoss.kd(temperature=2.0)
            >>> value = criterion(torch.randn(4, 50), torch.randn(4, 50))
        """
        preset: LossSettings = {
            "group_size": 0,  # the loss is the same for every group, and this one needs no search
            "coupled": True,
            "primary_weight": 1.0,
            "binary_weight": 1.0,
            "secondary_weight": 1.0,
        }
        preset.update(settings)
        return cls(**preset)

    @classmethod
    @takes_settings_of(loss)
    def dkd(cls, alpha: float = 1.0, beta: float = 8.0, **settings: Unpack[LossSettings]) -> Self:
        """Decoupled Knowledge Distillation (Zhao et al., CVPR 2022): T^2 (alpha TCKD + beta NCKD).

        Call it with a target, which alone is the primary group.

        Args:
            alpha: weight of TCKD, the target's probability against all others'.
            beta: weight of NCKD, the other classes among themselves.
            **settings: of `gkd.loss`.

        Examples:
            >>> criterion = gkd.GKDLoss.dkd(alpha=1.0, beta=8.0)
            >>> value = criterion(torch.randn(2, 50), torch.randn(2, 50), torch.tensor([3, 0]))
        """
        preset: LossSettings = {
            "group_size": 0,
            "primary_weight": 0.0,
            "binary_weight": alpha,
            "secondary_weight": beta,
        }
        preset.update(settings)
        return cls(**preset)

    @classmethod
    @takes_settings_of(loss)
    def gdkd(
        cls,
        k: int,
        top_weight: float = 1.0,
        other_weight: float = 1.0,
        **settings: Unpack[LossSettings],
    ) -> Self:
        """Generalized Decoupled Knowledge Distillation: the k largest logits against the rest.

        Call it without a target. The KL between the two groups' masses has ``binary_weight``.

        Args:
            k: classes of the primary group.
            top_weight: weight of the KL among the k classes.
            other_weight: weight of the KL among all other classes.
            **settings: of `gkd.loss`.

        Examples:
            >>> criterion = gkd.GKDLoss.gdkd(5, other_weight=2.0)
            >>> value = criterion(torch.randn(2, 50), torch.randn(2, 50))
        """
        preset: LossSettings = {
            "group_size": k,
            "primary_weight": top_weight,
            "secondary_weight": other_weight,
        }
        preset.update(settings)
        return cls(**preset)

    def extra_repr(self) -> str:
        """The settings as the constructor takes them, the rarer ones only where they are set."""
        if self.group_size is not None:
            grouping = f"group_size={self.group_size}"
        else:
            grouping = (
                f"threshold={DEFAULT_THRESHOLD if self.threshold is None else self.threshold}"
            )
        text = (
            f"{grouping}, temperature={self.temperature}, primary_weight={self.primary_weight}, "
            f"binary_weight={self.binary_weight}, secondary_weight={self.secondary_weight}, "
            f"rank_by={self.rank_by!r}, reduction={self.reduction!r}"
        )
        unusual = {"coupled": False, "ignore_index": -100, "method": "auto", "check_target": False}
        for name, usual in unusual.items():
            value = getattr(self, name)
            if value != usual:
                text += f", {name}={value!r}"
        return text
