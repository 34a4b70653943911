"""GKDLoss: gkd.loss as a module that keeps its settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .functional import loss


class GKDLoss(nn.Module):
    """``GKDLoss(**settings)(student_logits, teacher_logits, target)``; settings as gkd.loss takes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of a batch of [B, C] logits."""
        return loss(student_logits, teacher_logits, target, **self.settings)

    def extra_repr(self) -> str:
        """Settings, as they were given."""
        return ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
