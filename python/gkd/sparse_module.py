"""GKDSparseLoss: gkd.sparse_loss as a module with settings."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ._settings import DEFAULTS, takes_settings_of
from .functional import loss
from .sparse import SparseSettings, checked_sparse_loss
from .teacher import TeacherGroup

_DEFAULTS: dict[str, Any] = {name: DEFAULTS[name] for name in SparseSettings.__annotations__}
_SHOWN_WHERE_SET = ("secondary_weight", "coupled", "rank_by", "ignore_index")


class GKDSparseLoss(nn.Module):
    """`gkd.sparse_loss` as a module that keeps its settings.

    The keywords are those of `gkd.sparse_loss`, with the same defaults, and each is an attribute of
    its name that may be changed between batches. They are checked at construction, not at the first
    batch. There are no parameters and no buffers.

    Raises:
        ValueError: a setting that does not fit.

    Examples:
        >>> criterion = gkd.GKDSparseLoss(temperature=2.0)
        >>> kept = gkd.teacher_group(torch.randn(4, 50), temperature=2.0)
        >>> value = criterion(torch.randn(4, 50), kept)
    """

    temperature: float
    primary_weight: float
    binary_weight: float
    secondary_weight: float
    coupled: bool
    rank_by: Literal["teacher"]
    reduction: Literal["mean", "sum", "none"]
    ignore_index: int

    @takes_settings_of(loss, SparseSettings)
    def __init__(self, **settings: Unpack[SparseSettings]) -> None:
        super().__init__()
        for name in settings.keys() - _DEFAULTS.keys():
            raise TypeError(f"gkd.GKDSparseLoss: unexpected keyword argument {name!r}")
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.get(name, default))
        with torch.no_grad():
            logits = torch.empty((1, 1), device="meta")
            group = TeacherGroup(
                torch.empty((2,), dtype=torch.int64, device="meta"),
                torch.empty((1,), dtype=torch.int32, device="meta"),
                torch.empty((1,), device="meta"),
                torch.empty((1,), device="meta"),
            )
            self(logits, group)

    def forward(
        self, student_logits: Tensor, teacher_group: TeacherGroup, target: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, as `gkd.sparse_loss` gives it.

        Args:
            student_logits: [..., C].
            teacher_group: of the same rows.
            target: [...], a class per row.

        Returns:
            A scalar, or [...] with reduction "none".
        """
        settings = {name: getattr(self, name) for name in _DEFAULTS}
        return checked_sparse_loss(
            "gkd.GKDSparseLoss", student_logits, teacher_group, target, settings
        )

    def extra_repr(self) -> str:
        """The settings as the constructor takes them, the rarer ones only where they are set."""
        shown = {name: getattr(self, name) for name in _DEFAULTS}
        return ", ".join(
            f"{name}={value!r}"
            for name, value in shown.items()
            if name not in _SHOWN_WHERE_SET or value != _DEFAULTS[name]
        )
