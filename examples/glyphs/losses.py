"""What the students learn from: each recipe is a weight and a set of arguments for gkd.loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import gkd

# Of gkd.loss's arguments, those that decide the group and so belong to gkd.group as well.
GROUPING = ("threshold", "group_size", "temperature", "rank_by")


@dataclass(frozen=True)
class Recipe:
    """Cross-entropy + weight * gkd.loss(..., **arguments); weight 0 is cross-entropy alone."""

    label: str
    weight: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    tries: tuple[float, ...] = (0.0,)  #: the weights that --tune compares

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return gkd.loss(student, teacher, target, **self.arguments)

    def group(self, student: Tensor, teacher: Tensor, target: Tensor) -> gkd.Group:
        """The groups that this recipe sees, or would see if it distilled."""
        chosen = {name: self.arguments[name] for name in GROUPING if name in self.arguments}
        return gkd.group(student, teacher, target, **chosen)


# Each weight is the best of its tries on validation identities (--tune). GKD's primary weight of 8
# makes its term about ten times KD's, hence a grid of a tenth of KD's weights.
KD_TRIES = (0.3, 1.0, 3.0)
GKD_TRIES = (0.03, 0.1, 0.3)
RECIPES = {
    "ce": Recipe("cross-entropy"),
    "kd": Recipe(
        "+ KD",
        weight=1.0,
        arguments={
            "coupled": True,
            "primary_weight": 1.0,
            "binary_weight": 1.0,
            "secondary_weight": 1.0,
        },
        tries=KD_TRIES,
    ),
    "gkd": Recipe("+ GKD, ranked by teacher", weight=0.03, tries=GKD_TRIES),
    "gkd-student": Recipe(
        "+ GKD, ranked by student",
        weight=0.3,
        arguments={"rank_by": "student"},
        tries=GKD_TRIES,
    ),
}
