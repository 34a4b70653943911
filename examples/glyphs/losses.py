"""What the students learn from: each recipe is a weight and arguments for gkd.training_loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import gkd

from .models import Recogniser

# Of gkd.loss's arguments, those that decide the group and so belong to gkd.group as well.
GROUPING = ("threshold", "group_size", "temperature", "rank_by")


@dataclass(frozen=True)
class Recipe:
    """Cross-entropy + weight * distillation, in one pass; weight 0 is cross-entropy alone."""

    label: str
    weight: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    tries: tuple[float, ...] = (0.0,)  #: the weights that --tune compares
    share: float = 0.0  #: a group size that is a share of the classes, if not 0
    adaptive: int = 0  #: the step of `gkd.adaptive_group_size`, which then sizes the groups
    linear: bool = False  #: by `gkd.training_linear_loss`, from embeddings and head, without logits

    def _all(self, classes: int, student: Tensor | None) -> dict[str, Any]:
        if self.share:
            return {**self.arguments, "group_size": round(self.share * classes)}
        if self.adaptive:
            assert student is not None, "adaptive sizes need logits"
            size = gkd.adaptive_group_size(student, step=self.adaptive)
            return {**self.arguments, "group_size": int(size)}
        return self.arguments

    def training_loss(
        self,
        model: Recogniser,
        embeddings: Tensor,
        teacher: tuple[Tensor, Tensor],
        target: Tensor,
        *,
        scale: float,
        distillation_scale: float,
        margin: float,
        ramp: float,
    ) -> gkd.TrainingLoss:
        """Of the student's embeddings, and the teacher's with its prototypes, all of unit length.

        Cross-entropy has cosines times `scale`, and distillation cosines times
        `distillation_scale`: its logits are larger by a factor, so the same loss has a temperature
        that is smaller by it, and the square of it in its weight.
        """
        factor = distillation_scale / scale
        cosines = None if self.linear else model.cosines(embeddings)
        ranking = None if cosines is None else cosines.detach() * distillation_scale
        settings: dict[str, Any] = {"temperature": 4.0, **self._all(len(model.head), ranking)}
        settings["temperature"] /= factor
        settings["distillation_weight"] = ramp * self.weight * factor**2
        settings |= {"scale": scale, "margin": margin}
        if cosines is None:
            found = gkd.training_linear_loss(embeddings, model.head, *teacher, target, **settings)
        else:
            found = gkd.training_loss(cosines, teacher[0] @ teacher[1].t(), target, **settings)
        return found._replace(distillation=found.distillation * factor**2)

    def group(self, student: Tensor, teacher: Tensor, target: Tensor) -> gkd.Group:
        """The groups that this recipe sees, or would see if it distilled."""
        chosen = self._all(student.shape[1], student)
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
        linear=True,
    ),
}
