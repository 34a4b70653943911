"""What one seed of the sweep shares: its split, its teacher and views; and how it measures."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gkd
from examples.glyphs.augment import distorted
from examples.glyphs.data import Part, Photos, Split, split
from examples.glyphs.evaluate import accept_rates, embed, top1
from examples.glyphs.losses import Recipe
from examples.glyphs.models import Recogniser
from examples.glyphs.study import TEST_SEED, VALIDATION_SEED
from examples.glyphs.train import (
    History,
    Settings,
    Views,
    build,
    look,
    student_shape,
    train_student,
)
from examples.glyphs.train import train_teacher as _train_teacher

from . import plan

TEACHER_SCALE = 32.0  # students of this size do not get going at it, see `plan.SETTINGS`


@dataclass
class Lab:
    """One seed: a split, and a teacher of its own, kept on disk for a sweep that goes on later."""

    parts: Split
    validation: Part  #: distorted, other characters: what choices see
    teacher: Recogniser
    views: Views
    settings: Settings

    @classmethod
    def open(
        cls, photos: Photos, identities: int | None, settings: Settings, folder: Path
    ) -> tuple[Lab, bool]:
        """The lab of `settings.seed`, and whether its teacher was trained just now."""
        parts = split(photos, identities=identities, seed=settings.seed)
        weights = folder / f"teacher-{settings.seed}.pt"
        is_new = not weights.exists()
        if is_new:
            of_teacher = dataclasses.replace(settings, scale=TEACHER_SCALE)
            teacher = _train_teacher(parts.train, parts.classes, of_teacher, plan.TEACHER)
            _save(teacher.state_dict(), weights)
        else:
            teacher = build(plan.TEACHER, parts.classes, settings)
            teacher.load_state_dict(torch.load(weights))
            # The form it was trained in: rounding would differ in another.
            teacher = teacher.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        kept = folder / f"views-{settings.seed}.pt"
        if not kept.exists():
            _save(dataclasses.asdict(look(teacher, parts.train, settings)), kept)
        views = Views(**torch.load(kept))
        return cls(
            parts, distorted(parts.validation, VALIDATION_SEED), teacher, views, settings
        ), is_new

    def student(
        self, recipe: Recipe, settings: Settings, weights: Path, name: str
    ) -> tuple[Recogniser, dict[str, Any]]:
        """Trains a student, or loads one that was trained before, with its closing figures."""
        if weights.exists():
            kept = torch.load(weights)
            model = build(student_shape(settings), self.parts.classes, settings).eval()
            model.load_state_dict(kept["model"])
            return model, kept["closing"]
        model, history, seconds = train_student(
            recipe, self.views, self.parts.classes, settings, name=name
        )
        closing = {**_closing(history), "seconds_per_step": round(seconds, 5)}
        _save({"model": model.state_dict(), "closing": closing}, weights)
        return model, closing

    def step_times(
        self, cases: dict[str, tuple[Recipe, Settings]], *, steps: int, rounds: int
    ) -> dict[str, list[float]]:
        """Seconds per step of each case, in turn, round after round: all share what disturbs."""
        count = steps * self.settings.batch
        few = dataclasses.replace(
            self.views,
            images=self.views.images[:1, :count],
            embeddings=self.views.embeddings[:1, :count],
            labels=self.views.labels[:count],
        )
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (recipe, settings) in cases.items():
                short = dataclasses.replace(settings, epochs=1, log_points=1, progress=False)
                taken[name].append(train_student(recipe, few, self.parts.classes, short)[2])
        return taken

    def validate(self, model: Recogniser) -> float:
        """TAR at a FAR of 1e-2 on the validation characters."""
        return accept_rates(model, self.validation)[0]

    def test(self, model: Recogniser) -> dict[str, float]:
        """What is reported: test characters, and test photographs of known characters."""
        unseen, closed, _ = self._tests
        rates = accept_rates(model, unseen)
        return {
            "test_tar_1e-2": rates[0],
            "test_tar_1e-3": rates[1],
            "top1": top1(model, closed),
            **self._tail(model),
        }

    @functools.cached_property
    def _tests(self) -> tuple[Part, Part, Tensor]:
        """Distorted test characters and test photographs, and the teacher's logits of these."""
        closed = distorted(self.parts.closed_test, TEST_SEED)
        with torch.no_grad():
            seen = embed(self.teacher, closed.images) @ F.normalize(self.teacher.head).t()
        logits = seen * self.settings.distillation_scale
        return distorted(self.parts.open_test, TEST_SEED), closed, logits

    @torch.no_grad()
    def _tail(self, model: Recogniser) -> dict[str, float]:
        """How the student stands to the groups that the teacher ranks, whatever it learnt from.

        One yardstick for all: threshold 0.93, T = 4, on test photographs of known characters.
        """
        _, closed, teacher = self._tests
        student = model.cosines(embed(model, closed.images)) * self.settings.distillation_scale
        group = gkd.group(student, teacher, closed.labels, return_mask=True)
        rival = student.scatter(1, closed.labels[:, None], -torch.inf).argmax(dim=1)
        inside = group.mask[torch.arange(len(rival)), rival]  # type: ignore[index]
        return {
            "tail_student": _mean(1 - group.mass_student),
            "tail_teacher": _mean(1 - group.mass_teacher),
            "rival_outside": 1 - _mean(inside.double()),
            "teacher_group_share": _mean(group.size) / self.parts.classes,
        }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _closing(history: History) -> dict[str, float]:
    """Means over the last fifth of the logged steps."""
    last = max(1, len(history.step) // 5)
    fields = dataclasses.asdict(history)
    return {
        f"end_{name}": sum(values[-last:]) / last
        for name, values in fields.items()
        if name != "step"
    }


def _save(content: Any, path: Path) -> None:
    """Whole or not at all, as a later sweep trusts what it finds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    torch.save(content, draft)
    draft.rename(path)
