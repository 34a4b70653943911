"""The training loop: a student from a teacher, or a network alone."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from . import ranks, saved
from .data import Batches, Photographs, loader
from .heads import Head
from .images import to_input
from .networks import has_autocast
from .recipe import Recipe
from .scalars import Scalars
from .teacher import Teacher
from .watch import Watch


@dataclass(frozen=True)
class Place:
    """Where a run computes, and how it talks."""

    device: torch.device
    output: Path
    progress: bool = True

    def autocast(self, recipe: Recipe, network: str) -> AbstractContextManager[Any]:
        """Of a backbone, by its name in the recipe."""
        if not recipe.amp or (self.device.type == "cuda" and has_autocast(network)):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, recipe.amp))


def learning_rate(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """A linear warm-up from the least rate, then timm's cosine, or a line to the least rate."""
    warm = recipe.warmup_epochs * epoch_steps
    most, least = recipe.learning_rate, recipe.least_rate
    if step < warm:
        return least + (most - least) * step / warm
    if recipe.schedule == "cosine":
        return least + (most - least) * (1 + math.cos(math.pi * step / steps)) / 2
    return least + (most - least) * (steps - step) / max(1.0, steps - warm)


def train(
    name: str,
    network: nn.Module,
    teacher: Teacher | None,
    photographs: Photographs,
    recipe: Recipe,
    place: Place,
    *,
    epochs: float,
) -> Head:
    """Trains a network, whose head it returns; goes on where a stopped run was saved.

    Writes NAME.csv; the name is teacher or student. A network without a teacher is distilled from
    itself with a weight of 0: the same code, whether heads are split or not.
    """
    batches = Batches(len(photographs), recipe.batch, recipe.seed, ranks.rank(), ranks.count())
    steps = max(1, round(epochs * batches.steps))
    head = Head(photographs.classes, recipe, place.device)
    network.to(place.device, getattr(torch, recipe.dtype)).train()
    optimiser = torch.optim.SGD(
        [*network.parameters(), head.weight],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    scaler = torch.amp.GradScaler(
        place.device.type, enabled=recipe.amp == "float16", growth_interval=100
    )
    folder = place.output / name
    first = saved.last(folder) or 0
    if first:
        state = saved.load(folder, first)
        network.load_state_dict(state["network"])
        head.weight.data.copy_(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])

    def save(step: int) -> None:
        saved.save(
            folder,
            step,
            {
                "network": network.state_dict(),
                "head": head.weight.detach(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
            },
        )

    wrapped = network
    if ranks.count() > 1:
        wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    is_first = ranks.rank() == 0
    path = place.output / f"{name}.csv"
    watch = Watch(path, recipe, place.device)
    scalars = Scalars(path, first, watch.sets) if is_first else None
    images_of_epochs = loader(photographs, batches, recipe.workers, place.device.type == "cuda")
    weight = torch.zeros((), device=place.device, dtype=torch.float32)
    bar = tqdm(
        total=steps,
        initial=first,
        desc=name,
        unit="step",
        disable=not (place.progress and is_first),
    )
    step, started = first, time.perf_counter()
    while step < steps:
        epoch, batches.first = divmod(step, batches.steps)
        batches.epoch = epoch
        if teacher is not None and recipe.distillation_warmup > 0:
            weight.fill_(recipe.distillation_weight * min(1, epoch / recipe.distillation_warmup))
        elif teacher is not None:
            weight.fill_(recipe.distillation_weight)
        for batch in images_of_epochs:
            rate = learning_rate(recipe, step, steps, batches.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            pixels, labels, samples, flipped = (
                x.to(place.device, non_blocking=True) for x in batch
            )
            images = to_input(pixels, flipped).to(head.weight.dtype)
            with place.autocast(recipe, getattr(recipe, name)):
                features = wrapped(images).to(head.weight.dtype)
            goal = _goal(teacher, place, recipe, head, features, (images, samples, flipped))
            loss = head.loss(features, goal, labels, weight)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss.total).backward()
            head.share_gradient()
            if recipe.clip > 0:
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            is_last = step == steps - 1
            verifies = watch.due(step)
            if step % recipe.log_every == 0 or is_last or verifies:
                parts = torch.stack([x.detach().double() for x in loss])
                parts = parts if head.is_split else ranks.mean(parts)
                row = {"step": step, "epoch": epoch, "learning_rate": rate}
                row |= dict(zip(loss._fields, parts.tolist(), strict=True))
                row["distillation_weight"] = weight.item()
                if teacher is not None and (step % recipe.group_every == 0 or is_last):
                    row |= _group(head, features, goal, labels)
                if scalars is not None:
                    row |= watch(network) if verifies else {}
                    scalars.add(row)
                best = {"best": f"{watch.best:.4f}"} if watch.every else {}
                bar.set_postfix(loss=f"{row['total']:.3f}", **best, refresh=False)
            scaler.step(optimiser)
            scaler.update()
            step += 1
            bar.update()
            if step % recipe.save_every == 0 or step == steps:
                save(step)
            if step == steps:
                break
    bar.close()
    ranks.share_first(network.buffers())
    if scalars is not None:
        if watch.every and step > first:
            scalars.add({"step": step, "epoch": step // batches.steps, **watch(network)})
        scalars.close()
        if step > first and place.progress:
            each = 1000 * (time.perf_counter() - started) / (step - first)
            print(f"{name}: {step - first} steps, {each:.1f} ms each")
    network.eval()
    return head


def _goal(
    teacher: Teacher | None,
    place: Place,
    recipe: Recipe,
    head: Head,
    features: Tensor,
    batch: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    if teacher is None:
        return features.detach(), head.weight.detach()
    images, samples, flipped = batch
    with place.autocast(recipe, recipe.teacher):
        found = teacher.features(images, samples, flipped)
    return found.to(head.weight.dtype), teacher.weight


def _group(
    head: Head, features: Tensor, goal: tuple[Tensor, Tensor], labels: Tensor
) -> dict[str, Any]:
    found = head.group(features, goal, labels)
    means = ("mass_teacher", "mass_student", "primary", "binary", "secondary")
    return {
        "group_size": found.size.median().item(),
        **{name: getattr(found, name).mean().item() for name in means},
    }
