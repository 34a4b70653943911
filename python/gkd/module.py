"""GKDLoss and GKDTrainingLoss: gkd.loss and gkd.training_loss as modules with settings."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from ._settings import (
    DEFAULT_THRESHOLD,
    DEFAULTS,
    AllSettings,
    LossSettings,
    takes_settings_of,
)
from ._training import TRAINING_DEFAULTS, AllTrainingSettings, TrainingLoss
from .functional import checked_loss, loss
from .training import checked_training_loss, training_loss

_DEFAULTS: dict[str, Any] = {**DEFAULTS, "check_target": False}
_ALWAYS_SHOWN = (
    "temperature",
    "primary_weight",
    "binary_weight",
    "secondary_weight",
    "rank_by",
    "reduction",
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

    threshold: float | None
    group_size: int | None
    group_temperature: float | None
    temperature: float
    primary_weight: float
    binary_weight: float
    secondary_weight: float
    coupled: bool
    rank_by: Literal["teacher", "student"]
    reduction: Literal["mean", "sum", "none"]
    ignore_index: int
    method: Literal["auto", "sort", "select"]
    check_target: bool

    @takes_settings_of(loss, AllSettings)
    def __init__(self, **settings: Unpack[AllSettings]) -> None:
        super().__init__()
        for name in settings.keys() - _DEFAULTS.keys():
            raise TypeError(f"gkd.GKDLoss: unexpected keyword argument {name!r}")
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.get(name, default))
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
        settings = {name: getattr(self, name) for name in _DEFAULTS}
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
        weights = LossSettings(primary_weight=1.0, binary_weight=1.0, secondary_weight=1.0)
        # The loss is the same for every group, and the empty one needs no search.
        return cls(**LossSettings(group_size=0, coupled=True) | weights | settings)

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
        weights = LossSettings(primary_weight=0.0, binary_weight=alpha, secondary_weight=beta)
        return cls(**LossSettings(group_size=0) | weights | settings)

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
        weights = LossSettings(primary_weight=top_weight, secondary_weight=other_weight)
        return cls(**LossSettings(group_size=k) | weights | settings)

    def extra_repr(self) -> str:
        """The settings as the constructor takes them, the rarer ones only where they are set."""
        shown = {name: getattr(self, name) for name in _DEFAULTS}
        if self.threshold is None and self.group_size is None:
            shown["threshold"] = DEFAULT_THRESHOLD
        return ", ".join(
            f"{name}={value!r}"
            for name, value in shown.items()
            if name in _ALWAYS_SHOWN or value != _DEFAULTS[name]
        )


class GKDTrainingLoss(nn.Module):
    """`gkd.training_loss` as a module that keeps its settings.

    The keywords are those of `gkd.training_loss`, with the same defaults, and each is an attribute
    of its name that may be changed between batches. There are no parameters and no buffers.

    Raises:
        ValueError: a setting that does not fit.

    Examples:
        >>> criterion = gkd.GKDTrainingLoss(scale=64.0, margin=0.4, rank_by="student")
        >>> student, teacher, target = torch.rand(4, 50), torch.rand(4, 50), torch.arange(4)
        >>> total = criterion(student, teacher, target, distillation_weight=0.5).total
    """

    @takes_settings_of(training_loss, AllTrainingSettings)
    def __init__(self, **settings: Unpack[AllTrainingSettings]) -> None:
        super().__init__()
        defaults = {**TRAINING_DEFAULTS, **_DEFAULTS}
        for name in settings.keys() - defaults.keys():
            raise TypeError(f"gkd.GKDTrainingLoss: unexpected keyword argument {name!r}")
        for name, default in defaults.items():
            setattr(self, name, settings.get(name, default))
        with torch.no_grad():
            logits = torch.empty((1, 1), device="meta")
            target = torch.empty((1,), dtype=torch.int64, device="meta")
            shadows = {
                name: torch.empty((), device="meta")
                for name in ("margin", "distillation_weight")
                if isinstance(getattr(self, name), Tensor)
            }
            self(logits, logits, target, **shadows)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor | None = None,
        distillation_weight: float | Tensor | None = None,
    ) -> TrainingLoss:
        """The loss of a batch, as `gkd.training_loss` gives it.

        Args:
            student_logits: [..., C].
            teacher_logits: [..., C]; must not require grad.
            target: [...], a class per row.
            margin: of this batch, in place of the module's; [...] for one per row.
            distillation_weight: likewise.

        Returns:
            A `gkd.TrainingLoss`.
        """
        settings = {name: getattr(self, name) for name in _DEFAULTS}
        training = {name: getattr(self, name) for name in TRAINING_DEFAULTS}
        if margin is not None:
            training["margin"] = margin
        if distillation_weight is not None:
            training["distillation_weight"] = distillation_weight
        check_target = settings.pop("check_target")
        return checked_training_loss(
            "gkd.GKDTrainingLoss",
            student_logits,
            teacher_logits,
            target,
            check_target,
            training,
            settings,
        )

    def extra_repr(self) -> str:
        """The settings that are not the default, as the constructor takes them."""
        defaults = {**TRAINING_DEFAULTS, **_DEFAULTS}
        changed = {name: getattr(self, name) for name in defaults}
        return ", ".join(
            f"{name}={value!r}"
            for name, value in changed.items()
            if isinstance(value, Tensor) or value != defaults[name]
        )
