"""Training: the teacher, the views it has looked at, and a student that learns from both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .augment import augment, to_bytes, to_float
from .data import Part
from .losses import Recipe
from .models import Recogniser, margin_loss


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the photographs and the recipe."""

    device: str = "cpu"
    seed: int = 0
    image_size: int = 32
    batch: int = 128
    teacher_epochs: int = 10
    epochs: int = 16
    width: int = 4  #: of the student's first stage
    embedding: int = 0  #: of the student; 0 is eight times the width
    stem: int = 2  #: stride of the student's first convolution
    activation: str = "ReLU"  #: of the student, a class of torch.nn
    views: int = 8
    scale: float = 32.0  #: of the cosines in the cross-entropy
    margin: float = 0.2
    distillation_scale: float = 64.0  #: of the cosines that are distilled
    teacher_learning_rate: float = 5e-3
    learning_rate: float = 4e-2  #: of the students; chosen on validation for cross-entropy alone
    weight_decay: float = 5e-2
    warmup: float = 0.5  #: share of the steps in which the distillation weight rises from 0
    fused: bool = False  #: AdamW's fused form, which rounds otherwise
    log_points: int = 60  #: how often in a student's training the groups are looked at
    teacher_threads: int = 1
    student_threads: int = 1  #: a student's operations are too small for several
    progress: bool = True

    def generator(self, purpose: int) -> torch.Generator:
        """A stream of its own for each purpose, so that one does not shift another."""
        return torch.Generator(self.device).manual_seed(1000 * self.seed + purpose)


TEACHER = {"width": 32, "depth": 2, "embedding": 128}


def student_shape(settings: Settings) -> dict[str, Any]:
    embedding = settings.embedding or 8 * settings.width
    return {
        "width": settings.width,
        "depth": 1,
        "embedding": embedding,
        "stem": settings.stem,
        "activation": getattr(nn, settings.activation),
    }


@dataclass(frozen=True)
class Views:
    """Augmented training photographs and the teacher's logits for them, in compact form.

    Every student sees the same views, and the teacher runs once for all of them. Its logits are
    rebuilt from its embeddings: those of all classes would need classes / embedding as much room.
    """

    images: Tensor  #: uint8 [views, N, 1, H, W]
    embeddings: Any  #: float [views, N, E], unit length: a Tensor, or what offline.py has for it
    prototypes: Tensor  #: float [classes, E], unit length
    labels: Tensor  #: int64 [N]


@dataclass
class History:
    """Means over a batch at the logged steps; the terms carry neither weights nor T^2."""

    step: list[int] = field(default_factory=list)
    cross_entropy: list[float] = field(default_factory=list)
    distillation: list[float] = field(default_factory=list)
    primary: list[float] = field(default_factory=list)
    binary: list[float] = field(default_factory=list)
    secondary: list[float] = field(default_factory=list)
    group_share: list[float] = field(default_factory=list)
    teacher_outside: list[float] = field(default_factory=list)
    student_outside: list[float] = field(default_factory=list)


def build(shape: dict[str, Any], classes: int, settings: Settings) -> Recogniser:
    """A recogniser whose initial weights depend on the seed alone, not on what was built before."""
    torch.manual_seed(settings.seed)
    model = Recogniser(classes, image_size=settings.image_size, **shape)
    return model.to(settings.device)


def _optimiser(
    model: nn.Module, steps: int, rate: float, settings: Settings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    # No gradient clipping anywhere: it would cap the losses with larger terms and not the others.
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=rate,
        weight_decay=settings.weight_decay,
        fused=True if settings.fused else None,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(2, steps), pct_start=0.2
    )
    return optimiser, schedule


def _batches(count: int, settings: Settings, generator: torch.Generator) -> list[Tensor]:
    """One epoch's indices; a last batch under half the size is left out, as it would upset the
    batch statistics."""
    order = torch.randperm(count, generator=generator, device=settings.device)
    batches = list(order.split(settings.batch))
    if len(batches) > 1 and len(batches[-1]) < settings.batch / 2:
        batches.pop()
    return batches


def train_teacher(
    train: Part, classes: int, settings: Settings, shape: dict[str, int] = TEACHER
) -> Recogniser:
    """Cross-entropy with margin on fresh augmentations."""
    model = build(shape, classes, settings)
    # A fifth faster on CPUs at this width, and a third slower at the students'.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = train.images.to(settings.device), train.labels.to(settings.device)
    shuffle, distort = settings.generator(1), settings.generator(2)
    epochs = [_batches(len(labels), settings, shuffle) for _ in range(settings.teacher_epochs)]
    steps = sum(map(len, epochs))
    optimiser, schedule = _optimiser(model, steps, settings.teacher_learning_rate, settings)
    with tqdm(total=steps, desc="teacher", unit="step", disable=not settings.progress) as bar:
        for batches in epochs:
            for index in batches:
                views = augment(to_float(images[index]), distort)
                loss = margin_loss(
                    model.cosines(model(views)),
                    labels[index],
                    scale=settings.scale,
                    margin=settings.margin,
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}")
    return model.eval()


def distort(train: Part, settings: Settings) -> Tensor:
    """uint8 [views, N, 1, H, W]: every photograph in `views` distortions, of the seed alone."""
    images = train.images.to(settings.device)
    generator = settings.generator(3)
    chunks = [c for _ in range(settings.views) for c in images.split(512)]
    bar = tqdm(chunks, desc="views", unit="batch", disable=not settings.progress)
    seen = [to_bytes(augment(to_float(chunk), generator)) for chunk in bar]
    return torch.cat(seen).unflatten(0, (settings.views, -1))


@torch.no_grad()
def look(teacher: Recogniser, train: Part, settings: Settings) -> Views:
    """Augments every photograph `views` times and keeps what the teacher makes of it."""
    images = distort(train, settings)
    chunks = images.flatten(0, 1).split(512)
    bar = tqdm(chunks, desc="teacher's views", unit="batch", disable=not settings.progress)
    # The teacher sees the bytes that the students will see.
    embedded = [teacher(to_float(chunk)) for chunk in bar]
    return Views(
        images=images,
        embeddings=torch.cat(embedded).unflatten(0, (settings.views, -1)),
        prototypes=F.normalize(teacher.head),
        labels=train.labels.to(settings.device),
    )


class Stopwatch:
    """Seconds spent inside it; on CUDA it waits for the work to be done."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._wait()
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self.start

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def train_student(
    recipe: Recipe, views: Views, classes: int, settings: Settings, *, name: str = "student"
) -> tuple[Recogniser, History, float]:
    """Returns the student, its history, and the seconds a step took (logging left out)."""
    model = build(student_shape(settings), classes, settings)
    shuffle = settings.generator(4)  # the same order for every recipe
    epochs = [_batches(len(views.labels), settings, shuffle) for _ in range(settings.epochs)]
    steps = sum(map(len, epochs))
    optimiser, schedule = _optimiser(model, steps, settings.learning_rate, settings)
    warm_steps = max(1, round(steps * settings.warmup))
    log_every = max(1, steps // settings.log_points)
    history, watch = History(), Stopwatch(settings.device)
    step = 0
    with tqdm(total=steps, desc=name, unit="step", disable=not settings.progress) as bar:
        for epoch, batches in enumerate(epochs):
            view = epoch % settings.views
            for index in batches:
                with watch:
                    target = views.labels[index]
                    embeddings = model(to_float(views.images[view, index]))
                    distillation = None
                    if recipe.weight > 0:
                        loss, cross_entropy, distillation = recipe.training_loss(
                            model,
                            embeddings,
                            (views.embeddings[view, index], views.prototypes),
                            target,
                            scale=settings.scale,
                            distillation_scale=settings.distillation_scale,
                            margin=settings.margin,
                            ramp=min(1.0, (step + 1) / warm_steps),
                        )
                    else:
                        loss = cross_entropy = margin_loss(
                            model.cosines(embeddings),
                            target,
                            scale=settings.scale,
                            margin=settings.margin,
                        )
                    optimiser.zero_grad()
                    loss.backward()
                if step % log_every == 0 or step == steps - 1:
                    with torch.no_grad():  # with the weights that the loss saw
                        cosines = model.cosines(embeddings)
                        teacher = views.embeddings[view, index] @ views.prototypes.t()
                    group = recipe.group(
                        cosines * settings.distillation_scale,
                        teacher * settings.distillation_scale,
                        target,
                    )
                    _log(history, step, cross_entropy, distillation, group, classes)
                    bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
                with watch:
                    optimiser.step()
                    schedule.step()
                step += 1
                bar.update()
    return model.eval(), history, watch.seconds / steps


def _log(
    history: History,
    step: int,
    cross_entropy: Tensor,
    distillation: Tensor | None,
    group: Any,
    classes: int,
) -> None:
    history.step.append(step)
    history.cross_entropy.append(cross_entropy.item())
    history.distillation.append(0.0 if distillation is None else distillation.item())
    history.primary.append(group.primary.mean().item())
    history.binary.append(group.binary.mean().item())
    history.secondary.append(group.secondary.mean().item())
    history.group_share.append(group.size.double().mean().item() / classes)
    history.teacher_outside.append(1 - group.mass_teacher.double().mean().item())
    history.student_outside.append(1 - group.mass_student.double().mean().item())
