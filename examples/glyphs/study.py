"""One run: a teacher, its students, what they reach; and the choice of weights on validation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .augment import distorted, to_float
from .data import Split
from .evaluate import top1, verify
from .losses import RECIPES
from .models import Recogniser, cost
from .train import Settings, Views, look, train_student, train_teacher

VALIDATION_SEED, TEST_SEED = 11, 12  # of the distortions; not the run's seed, so runs compare


def head_start(split: Split, settings: Settings) -> tuple[Recogniser, Views]:
    """What every student of a run shares; leaves the thread count at the students'."""
    torch.set_num_threads(settings.teacher_threads)
    teacher = train_teacher(split.train, split.classes, settings)
    views = look(teacher, split.train, settings)
    torch.set_num_threads(settings.student_threads)
    return teacher, views


def describe(model: Recogniser, split: Split, settings: Settings) -> dict[str, Any]:
    """Size and reported figures of one model: test photographs and test identities."""
    parameters, macs = cost(model, settings.image_size)
    verification = verify(model, distorted(split.open_test, TEST_SEED))
    return {
        "parameters": parameters,
        "macs": macs,
        "top1": top1(model, distorted(split.closed_test, TEST_SEED)),
        "tar": verification.tar,
        "roc": verification.curve,
        "pairs": verification.pairs,
    }


@torch.no_grad()
def sample_logits(
    model: Recogniser, views: Views, settings: Settings, rows: int = 256
) -> dict[str, Tensor]:
    """Both networks' distillation logits [rows, classes] of some photographs, and their classes:
    what a loss meets."""
    index = torch.randperm(len(views.labels), generator=torch.Generator().manual_seed(0))[:rows]
    index = index.to(views.labels.device)
    student = model.cosines(model(to_float(views.images[0, index])))
    teacher = views.embeddings[0, index] @ views.prototypes.t()
    return {
        "student": (student * settings.distillation_scale).cpu(),
        "teacher": (teacher * settings.distillation_scale).cpu(),
        "target": views.labels[index].cpu(),
    }


def run(
    split: Split, students: list[str], settings: Settings
) -> tuple[dict[str, Any], Views, dict[str, Tensor]]:
    """Trains the teacher and the named students; the report is plain JSON.

    Third come the last student's and the teacher's logits of some photographs.
    """
    teacher, views = head_start(split, settings)
    report: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "torch": torch.__version__,
        "classes": split.classes,
        "photographs": {
            part: len(getattr(split, part).labels)
            for part in ("train", "closed_test", "validation", "open_test")
        },
        "teacher": describe(teacher, split, settings),
        "students": {},
    }
    for name in students:
        recipe = RECIPES[name]
        model, history, seconds = train_student(
            recipe, views, split.classes, settings, name=f"{name:<11}"
        )
        report["students"][name] = {
            "label": recipe.label,
            "weight": recipe.weight,
            "arguments": recipe.arguments,
            "seconds_per_step": seconds,
            **describe(model, split, settings),
            "history": dataclasses.asdict(history),
        }
    return report, views, sample_logits(model, views, settings)


def tune(split: Split, students: list[str], settings: Settings) -> dict[str, Any]:
    """TAR at FAR 1e-2 on the validation identities at each weight; the test parts stay closed."""
    _, views = head_start(split, settings)
    validation = distorted(split.validation, VALIDATION_SEED)
    found: dict[str, Any] = {}
    for name in students:
        found[name] = {}
        for weight in RECIPES[name].tries:
            recipe = dataclasses.replace(RECIPES[name], weight=weight)
            model, _, _ = train_student(
                recipe, views, split.classes, settings, name=f"{name} x {weight:g}"
            )
            found[name][f"{weight:g}"] = verify(model, validation).tar["0.01"]
    return found


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, aligned so that it reads well in a terminal too."""
    head = ["recogniser", "weight", "parameters", "top-1", "TAR@1e-2", "TAR@1e-3", "ms/step"]
    rows = [head]
    teacher = {**report["teacher"], "label": "teacher"}
    for entry in [teacher, *report["students"].values()]:
        seconds = entry.get("seconds_per_step")
        rows.append(
            [
                entry["label"],
                f"{entry['weight']:g}" if entry.get("weight") else "",
                f"{entry['parameters']:,}",
                f"{entry['top1']:.1%}",
                f"{entry['tar']['0.01']:.1%}",
                f"{entry['tar']['0.001']:.1%}",
                "" if seconds is None else f"{seconds * 1e3:.1f}",
            ]
        )
    return markdown(rows)


def tune_table(found: dict[str, Any]) -> str:
    """One row per recipe and weight, the best weight of each recipe marked."""
    rows = [["student", "weight", "validation TAR@1e-2", ""]]
    for name, scores in found.items():
        best = max(scores, key=scores.__getitem__)
        for weight, score in scores.items():
            rows.append([name, weight, f"{score:.1%}", "best" if weight == best else ""])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "| " + " | ".join(
        "-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([lines[0], rule + " |", *lines[1:]])
