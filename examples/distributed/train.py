"""The training loop, the same for one process and for a rank of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..glyphs.augment import augment, to_float
from ..glyphs.data import Part
from ..glyphs.losses import RECIPES
from ..glyphs.models import Recogniser
from .heads import Sharded, Whole


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the photographs and the number of ranks."""

    recipe: str = "gkd"
    steps: int = 50
    batch: int = 128
    seed: int = 0
    learning_rate: float = 2e-4
    momentum: float = 0.9
    width: int = 4  #: channels of the student's first stage
    teacher_embedding: int = 128
    scale: float = 32.0  #: of the cosines in the cross-entropy
    distillation_scale: float = 64.0  #: of the cosines that are distilled
    device: str = "cpu"
    dtype: str = "float32"

    def generator(self, purpose: int) -> torch.Generator:
        """A stream for each purpose, of the CPU: every rank and device draws the same."""
        return torch.Generator().manual_seed(1000 * self.seed + purpose)


class Teacher:
    """A random projection of the photograph, and each identity's mean of them as its head.

    Untrained, so that the example is about the loss and starts at once.
    """

    def __init__(self, train: Part, classes: int, settings: Settings) -> None:
        pixels = to_float(train.images).flatten(1)
        self.mean = pixels.mean(0)
        shape = (pixels.shape[1], settings.teacher_embedding)
        self.projection = torch.randn(shape, generator=settings.generator(1))
        features = self.features(train.images)
        sums = torch.zeros(classes, shape[1]).index_add_(0, train.labels, features)
        self.head = F.normalize(sums)  #: [C, E]

    def features(self, images: Tensor) -> Tensor:
        """Unit embeddings [B, E] of uint8 images."""
        return F.normalize((to_float(images).flatten(1) - self.mean) @ self.projection)

    def top1(self, part: Part) -> float:
        found = (self.features(part.images) @ self.head.t()).argmax(1)
        return (found == part.labels).float().mean().item()


def train(
    part: Part, teacher: Teacher, heads: Whole | Sharded, settings: Settings, *, progress: bool
) -> dict[str, list[float]]:
    """Each step's losses, by name, before the step. Ends with an error if ranks have parted."""
    recipe = RECIPES[settings.recipe]
    place: dict[str, Any] = {"device": settings.device, "dtype": getattr(torch, settings.dtype)}
    torch.manual_seed(settings.seed)
    # Smooth: where a ReLU's input is within rounding of 0, its gradient is another in another run,
    # and soon everything is.
    model = Recogniser(
        len(teacher.head), width=settings.width, depth=1, embedding=32, activation=nn.SiLU
    )
    # The whole head is drawn, and sliced then: the weights do not depend on the number of ranks.
    head = nn.Parameter(heads.rows(model.head.detach()).to(**place))
    del model.head
    model = model.to(**place)
    backbone = list(model.parameters())
    teacher_head = heads.rows(teacher.head).to(**place)
    # Not Adam: where a gradient is 0 but for rounding, Adam makes a whole step of the rounding.
    optimiser = torch.optim.SGD(
        [*backbone, head], lr=settings.learning_rate, momentum=settings.momentum
    )
    order, distort = settings.generator(2), settings.generator(3)
    losses: dict[str, list[float]] = {"total": [], "cross_entropy": [], "distillation": []}
    bar = tqdm(range(settings.steps), desc="train", unit="step", disable=not progress)
    for _ in bar:
        index = torch.randint(len(part.labels), (settings.batch,), generator=order)
        images, target = part.images[index], part.labels[index].to(settings.device)
        # The student sees a distorted photograph, the teacher the photograph.
        views = augment(to_float(images), distort).to(**place)
        goal = teacher.features(images).to(**place) @ teacher_head.t()
        cosines = heads.enter(model(views)) @ F.normalize(head).t()
        with heads.step():
            cross_entropy = heads.cross_entropy(cosines * settings.scale, target)
            distillation = heads.distillation(
                cosines * settings.distillation_scale,
                goal * settings.distillation_scale,
                target,
                recipe,
            )
            total = cross_entropy + recipe.weight * distillation
            optimiser.zero_grad()
            total.backward()
        optimiser.step()
        for name, value in zip(losses, (total, cross_entropy, distillation), strict=True):
            losses[name].append(value.item())
        bar.set_postfix(loss=f"{losses['total'][-1]:.4f}", refresh=False)
    gap = heads.largest_gap(backbone)
    if gap != 0:
        raise RuntimeError(f"the ranks' backbones differ by up to {gap}")
    return losses
