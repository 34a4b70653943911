"""Training: the teacher, what is kept of it, and students."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import gkd
import gkd.cache

from .losses import KL, Loss, labels
from .model import LanguageModel, Shape


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the text."""

    vocabulary: int = 4096
    length: int = 64  #: tokens of a sequence
    batch: int = 16  #: sequences a step
    teacher: Shape = Shape(width=192, depth=4, heads=6)
    student: Shape = Shape(width=64, depth=2, heads=4)
    teacher_steps: int = 500
    kept: int = 1536  #: sequences that the students learn from, and the cache holds
    epochs: int = 4  #: of the students
    group_size: int = 32  #: k
    teacher_rate: float = 2e-3
    student_rate: float = 4e-3
    progress: bool = True

    @property
    def grouping(self) -> dict[str, Any]:
        """What the cache's rows depend on, as gkd.teacher_group takes it."""
        return {"group_size": self.group_size, "temperature": KL["temperature"]}


def built(shape: Shape, settings: Settings, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(shape, settings.vocabulary, settings.length)


def _order(count: int, steps: int, batch: int, seed: int) -> list[Tensor]:
    """`steps` batches: epoch after epoch, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(count, generator=generator)
        batches += order[: max(1, count // batch) * batch].split(batch)
    return batches[:steps]


class Trainer:
    """A model, its optimiser, and the steps that it takes."""

    def __init__(self, model: LanguageModel, rate: float, steps: int) -> None:
        self.model = model
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rate, total_steps=max(2, steps), pct_start=0.1
        )

    def step(self, loss: Loss, samples: Tensor, sequences: Tensor) -> float:
        """One step on these sequences; returns the seconds it took."""
        start = time.perf_counter()
        tokens = sequences[samples]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        self.optimiser.zero_grad()
        value = loss(self.model(inputs), samples, inputs, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return time.perf_counter() - start


def train(
    model: LanguageModel, loss: Loss, sequences: Tensor, settings: Settings, **how: Any
) -> LanguageModel:
    """`how`: steps, rate, seed of the order, and a name for the bar."""
    trainer = Trainer(model, how["rate"], how["steps"])
    order = _order(len(sequences), how["steps"], settings.batch, how["seed"])
    for samples in tqdm(order, desc=how["name"], unit="step", disable=not settings.progress):
        trainer.step(loss, samples, sequences)
    return model.eval()


def train_teacher(sequences: Tensor, settings: Settings) -> LanguageModel:
    """Cross-entropy, on all sequences there are."""
    return train(
        built(settings.teacher, settings, seed=0),
        labels,
        sequences,
        settings,
        steps=settings.teacher_steps,
        rate=settings.teacher_rate,
        seed=0,
        name="teacher",
    )


def train_student(
    loss: Loss, sequences: Tensor, settings: Settings, *, seed: int, name: str
) -> LanguageModel:
    """All students of a seed begin with the same weights and see the same batches."""
    return train(
        built(settings.student, settings, seed=1 + seed),
        loss,
        sequences,
        settings,
        steps=settings.epochs * (len(sequences) // settings.batch),
        rate=settings.student_rate,
        seed=1 + seed,
        name=name,
    )


@torch.no_grad()
def likeliest(teacher: LanguageModel, sequences: Tensor, size: int) -> Tensor:
    """int64 [S, L, k], the k likeliest classes of every token; all others are its tail."""
    return torch.cat([teacher(x[:, :-1]).topk(size).indices for x in sequences.split(32)])


class Score(NamedTuple):
    perplexity: float  #: exp of the mean cross-entropy of a token
    tail: float  #: mean probability of the tail


@torch.no_grad()
def scored(model: LanguageModel, sequences: Tensor, likely: Tensor) -> Score:
    entropy, tail, tokens = 0.0, 0.0, sequences[:, 1:].numel()
    for own, top in zip(sequences.split(32), likely.split(32), strict=True):
        found = model(own[:, :-1]).log_softmax(-1)
        entropy += F.nll_loss(found.flatten(0, 1), own[:, 1:].flatten(), reduction="sum").item()
        tail += (1 - found.gather(2, top).exp().sum(-1)).sum().item()
    return Score(math.exp(entropy / tokens), tail / tokens)


def share_outside(sequences: Tensor, likely: Tensor) -> float:
    """How often the next token is in the tail: what a tail's probability should be."""
    return (likely != sequences[:, 1:, None]).all(-1).double().mean().item()


def opened(directory: Path, teacher: str, settings: Settings) -> gkd.cache.GroupReader:
    """The cache of this teacher; ValueError where it was made with other settings."""
    return gkd.cache.GroupReader(
        directory, num_classes=settings.vocabulary, teacher=teacher, **settings.grouping
    )


def keep(
    teacher: LanguageModel,
    sequences: Tensor,
    settings: Settings,
    directory: Path,
    dtype: torch.dtype = torch.float16,
) -> gkd.cache.GroupReader:
    """Runs the teacher once over the sequences; one that was stopped goes on where it was.

    A row is a token: its sample is the sequence's number, its part the place in it. Targets join
    their rows' groups, since cross-entropy is computed in the same pass.
    """
    name = gkd.cache.fingerprint(teacher.state_dict())
    places = torch.arange(settings.length)
    with gkd.cache.GroupWriter(
        directory,
        num_classes=settings.vocabulary,
        dtype=dtype,
        teacher=name,
        **settings.grouping,
    ) as writer:
        todo = torch.arange(len(sequences))
        todo = todo[writer.missing(todo[:, None], parts=places).any(1)]
        bar = tqdm(todo.split(16), desc="cache", unit="batch", disable=not settings.progress)
        for samples in bar:
            tokens = sequences[samples]
            with torch.no_grad():
                logits = teacher(tokens[:, :-1])
            # The likely classes come near 0, where float16 is finest.
            logits -= logits.amax(-1, keepdim=True)
            group = gkd.teacher_group(logits, tokens[:, 1:], dtype=dtype, **settings.grouping)
            writer.write(samples[:, None], group, parts=places)
    return opened(directory, name, settings)


def step_times(
    losses: dict[str, Loss], sequences: Tensor, settings: Settings, *, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds of a step of each loss, in turn, round after round: all share what disturbs."""
    trainers = {
        name: Trainer(
            built(settings.student, settings, 1), settings.student_rate, steps * rounds + 1
        )
        for name in losses
    }
    order = _order(len(sequences), steps * rounds + 1, settings.batch, seed=1)
    for name, loss in losses.items():  # memory, pages of the cache
        trainers[name].step(loss, order[-1], sequences)
    found = []
    for index in tqdm(range(rounds), desc="times", disable=not settings.progress):
        for name, loss in losses.items():
            own = order[index * steps : (index + 1) * steps]
            seconds = sorted(trainers[name].step(loss, s, sequences) for s in own)
            found.append({"method": name, "round": index, "seconds": seconds[len(own) // 2]})
    return found


def described(settings: Settings) -> dict[str, Any]:
    """The settings that a teacher depends on, to be stored beside it."""
    names = ("vocabulary", "length", "batch", "teacher", "teacher_steps", "teacher_rate")
    return {name: dataclasses.asdict(settings)[name] for name in names}
