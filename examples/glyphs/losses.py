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
    share: float = 0.0  #: a group size that is a share of the classes, if not 0
    adaptive: int = 0  #: the step of `gkd.adaptive_group_size`, which then sizes the groups

    def _all(self, student: Tensor) -> dict[str, Any]:
        if self.share:
            return {**self.arguments, "group_size": round(self.share * student.shape[1])}
        if self.adaptive:
            size = gkd.adaptive_group_size(student, step=self.adaptive)
            return {**self.arguments, "group_size": int(size)}
        return self.arguments

    def training_loss(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        *,
        scale: float,
        distillation_scale: float,
        margin: float,
        ramp: float,
    ) -> gkd.TrainingLoss:
        """Of cosines: cross-entropy at `scale`, and distillation as of cosines times
        `distillation_scale`: its logits are larger by a factor, so the same loss has a temperature
        that is smaller by it, and the square of it in its weight."""
        factor = distillation_scale / scale
        settings = {"temperature": 4.0, **self._all(student * distillation_scale)}
        settings["temperature"] /= factor
        found = gkd.training_loss(
            student,
            teacher,
            target,
            scale=scale,
            margin=margin,
            distillation_weight=ramp * self.weight * factor**2,
            **settings,
        )
        return found._replace(distillation=found.distillation * factor**2)

    def group(self, student: Tensor, teacher: Tensor, target: Tensor) -> gkd.Group:
        """The groups that this recipe sees, or would see if it distilled."""
        chosen = self._all(student)
        return gkd.group(
            student, teacher, target, **{name: chosen[name] for name in GROUPING if name in chosen}
        )


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
