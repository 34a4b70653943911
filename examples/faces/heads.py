"""The student's head and the loss between it and the teacher's: whole on each rank, or split."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import gkd

from . import ranks
from .recipe import Recipe


class Head:
    """[C, D] of a cosine head, or this rank's classes of it.

    All of it is drawn and sliced then, so that it does not depend on the number of ranks.
    """

    def __init__(self, classes: int, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.classes = recipe, classes
        self.is_split = recipe.sharded and ranks.count() > 1
        self.start, self.end = ranks.shard(classes) if self.is_split else (0, classes)
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        # Of length 1: the shorter a row, the further a step turns it.
        whole = torch.randn(classes, recipe.embedding, generator=generator)
        whole /= recipe.embedding**0.5
        dtype = getattr(torch, recipe.dtype)
        self.weight = nn.Parameter(self.rows(whole).to(device, dtype))

    def rows(self, whole: Tensor) -> Tensor:
        """Of a matrix with a row per class, those of this rank."""
        return whole[self.start : self.end].clone()

    def loss(
        self,
        features: Tensor,
        teacher: tuple[Tensor, Tensor],
        labels: Tensor,
        weight: Tensor,
    ) -> gkd.TrainingLoss:
        """Of a batch, of all ranks where the head is split, else of this one.

        Args:
            features: [B, D] of the student, this rank's.
            teacher: its features [B, E], and its head [C, E] or this rank's rows of it.
            labels: [B].
            weight: [], the distillation's.
        """
        teacher_features, teacher_weight = teacher
        where: dict[str, Any] = {}
        if self.is_split:
            features = ranks.gather(features)
            teacher_features, labels = ranks.gathered(teacher_features), ranks.gathered(labels)
            where = {"class_start": self.start, "num_classes": self.classes}
        settings = {**self.settings(features, labels), "distillation_weight": weight, **where}
        module = gkd.distributed if self.is_split else gkd
        if self.recipe.logits:
            student = F.linear(F.normalize(features), F.normalize(self.weight))
            goal = F.linear(F.normalize(teacher_features), F.normalize(teacher_weight))
            return module.training_loss(student, goal, labels, **settings)
        if self.is_split:
            # What `gather` does in the backward; twice would be once too often.
            settings["reduce_features_grad"] = False
        return module.training_linear_loss(
            features, self.weight, teacher_features, teacher_weight, labels, **settings
        )

    def settings(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        """Keywords of gkd.training_loss, but the distillation's weight."""
        recipe = self.recipe
        margin: float | Tensor = recipe.margin_size
        if recipe.margin == "arcface":
            own = self._own_cosines(features.detach(), labels)
            margin = own - (own.acos() + recipe.margin_size).clamp(max=torch.pi).cos()
        return {
            "scale": recipe.scale,
            "margin": margin,
            "distill_margin": recipe.distill_margin,
            **recipe.gkd,
        }

    @torch.no_grad()
    def _own_cosines(self, features: Tensor, labels: Tensor) -> Tensor:
        """[B], of each row with its own class."""
        here = (labels >= self.start) & (labels < self.end)
        found = features.new_zeros(len(labels))
        own = self.weight[labels[here] - self.start]
        found[here] = (F.normalize(features[here]) * F.normalize(own)).sum(1)
        if self.is_split:
            dist.all_reduce(found)
        return found.clamp(-1, 1)

    @torch.no_grad()
    def group(self, features: Tensor, teacher: tuple[Tensor, Tensor], labels: Tensor) -> gkd.Group:
        """gkd.group of at most 16 rows of this rank, or of the first of all ranks'."""
        features, goal = features.detach()[:16], teacher[0][:16]
        labels = labels[:16]
        if self.is_split:
            features, goal, labels = (ranks.gathered(x)[:16] for x in (features, goal, labels))
        student = F.linear(F.normalize(features), F.normalize(self.weight))
        other = F.linear(F.normalize(goal), F.normalize(teacher[1]))
        if self.is_split:
            student, other = (ranks.all_classes(x, self.classes) for x in (student, other))
        return gkd.group(student, other, labels, **self.settings(features, labels))

    def share_gradient(self) -> None:
        """A whole head's gradient, over the ranks; DDP does that for the backbone only."""
        if not self.is_split and self.weight.grad is not None:
            ranks.mean(self.weight.grad)

    def whole(self) -> Tensor:
        """[C, D] on the CPU, on every rank."""
        weight = self.weight.detach()
        if self.is_split:
            weight = ranks.all_classes(weight.t().contiguous(), self.classes).t()
        return weight.cpu().contiguous()
