"""The study: runs `plan` from nothing or from where it stopped; see `--help`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in __main__

import torch

from examples.glyphs import data
from examples.glyphs.evaluate import top1
from examples.glyphs.models import Recogniser, cost
from examples.glyphs.train import Settings

from . import plan
from .groups import group_rows
from .lab import Lab
from .record import Record, Row


class OutOfTime(Exception):
    """No further run may start."""


class Sweep:
    """Goes through the plan; what the record already has is not run again."""

    def __init__(
        self,
        photos: data.Photos,
        out: Path,
        settings: Settings,
        *,
        identities: int | None = None,
        seeds: int = 3,
        minutes: float = float("inf"),
    ) -> None:
        self.photos, self.out, self.settings = photos, out, settings
        self.identities, self.seeds = identities, range(seeds)
        self.deadline = time.monotonic() + 60 * minutes
        self.record = Record(out / "runs.jsonl")
        self._lab: Lab | None = None

    def run(self) -> None:
        """Raises OutOfTime when the minutes are over."""
        for stage in plan.STAGES:
            for name in stage.recipes:
                self.tune(plan.tuned_as(name))
            for seed in self.seeds:
                for name in stage.recipes:
                    self.test(name, seed, stage.shape, stage.longer)
            self.time_steps()  # these two once, after the first stage
            self.measure_groups()

    def lab(self, seed: int) -> Lab:
        """One is held in memory at a time."""
        if self._lab is None or self._lab.settings.seed != seed:
            self._lab = None
            self._check_time()
            settings = dataclasses.replace(self.settings, seed=seed)
            lab, is_new = Lab.open(self.photos, self.identities, settings, self.out)
            self._lab = lab
            if is_new or self.record.find(stage="teacher", seed=seed) is None:
                self._report_teacher(lab)
        return self._lab

    def _report_teacher(self, lab: Lab) -> None:
        parameters, macs = cost(lab.teacher, lab.settings.image_size)
        row = {
            "stage": "teacher",
            "recipe": "teacher",
            "seed": lab.settings.seed,
            "classes": lab.parts.classes,
            "parameters": parameters,
            "macs": macs,
            "epochs": lab.settings.teacher_epochs,
            "val_tar": lab.validate(lab.teacher),
            "train_top1": top1(lab.teacher, lab.parts.train),
        }
        self._report({**row, **lab.test(lab.teacher)})

    def tune(self, name: str) -> tuple[plan.Try, list[tuple[plan.Try, float]]]:
        """The best try of a recipe, and all of them with their scores, on the first seed."""
        ladder = plan.ladder(name)
        done: list[tuple[plan.Try, float]] = []
        while (entry := plan.next_try(done, ladder.seconds)) is not None:
            key = self._key("tune", name, self.seeds[0], plan.TUNED_SHAPE, entry)
            row = self.record.find(**key) or self._train(key, is_test=False)
            done.append((entry, row["val_tar"]))
        return plan.best(done), done

    def test(self, name: str, seed: int, shape: str, longer: int = 1) -> Row:
        """The tuned recipe on a seed; the test parts are looked at here and nowhere else."""
        key = self._key("test", name, seed, shape, self.tune(plan.tuned_as(name))[0])
        key["epochs"] *= longer
        return self.record.find(**key) or self._train(key, is_test=True)

    def _key(self, stage: str, name: str, seed: int, shape: str, entry: plan.Try) -> Row:
        """Everything that tells a run from others; the settings that are common are not in it."""
        value = plan.ladder(plan.tuned_as(name)).value(entry.rung)
        if name == "ce":
            rate, margin, weight, warmup = value, entry.second, 0.0, 0.0
        else:
            usual = self.tune("ce")[0]
            rate, margin = plan.LEARNING_RATE.value(usual.rung), usual.second
            weight, warmup = value, entry.second
        return {
            "stage": stage,
            "recipe": name,
            "seed": seed,
            "shape": shape,
            "learning_rate": rate,
            "margin": margin,
            "weight": weight,
            "warmup": warmup,
            "epochs": self.settings.epochs,
        }

    def _train(self, key: Row, *, is_test: bool) -> Row:
        lab = self.lab(key["seed"])
        self._check_time()
        started = time.monotonic()
        model, closing = self._student(key)
        parameters, macs = cost(model, self.settings.image_size)
        row = {
            **key,
            "classes": lab.parts.classes,
            "parameters": parameters,
            "macs": macs,
            "val_tar": lab.validate(model),
            **(lab.test(model) if is_test else {}),
            **closing,
            "seconds": round(time.monotonic() - started, 1),
        }
        return self._report(row)

    def _student(self, key: Row) -> tuple[Recogniser, dict[str, Any]]:
        """Trained, or loaded where a stopped sweep had it."""
        name = "_".join(str(value) for value in key.values())
        recipe = dataclasses.replace(plan.RECIPES[key["recipe"]], weight=key["weight"])
        weights = self.out / "students" / f"{name}.pt"
        return self.lab(key["seed"]).student(recipe, self._student_settings(key), weights, name)

    def _student_settings(self, key: Row) -> Settings:
        width, embedding = plan.SHAPES[key["shape"]]
        chosen = {name: key[name] for name in ("learning_rate", "margin", "warmup", "epochs")}
        # The best of many tries was also a lucky one: tests start from other weights, in another
        # order, so that no luck is carried over.
        seed = key["seed"] + (plan.TEST_DRAW if key["stage"] == "test" else 0)
        return dataclasses.replace(
            self.settings, seed=seed, width=width, embedding=embedding, **chosen
        )

    def time_steps(self) -> None:
        """Of each main recipe at its tuned setting."""
        if self.record.find(stage="time"):
            return
        cases = {}
        for name in plan.MAIN:
            key = self._key("time", name, self.seeds[0], plan.TUNED_SHAPE, self.tune(name)[0])
            recipe = dataclasses.replace(plan.RECIPES[name], weight=key["weight"])
            cases[name] = (recipe, self._student_settings(key))
        self._check_time()
        taken = self.lab(self.seeds[0]).step_times(
            cases, steps=plan.TIMED_STEPS, rounds=plan.TIMED_ROUNDS
        )
        for name, seconds in taken.items():
            ratios = torch.tensor(seconds) / torch.tensor(taken["ce"])
            self._report(
                {
                    "stage": "time",
                    "recipe": name,
                    "ms_per_step": round(1e3 * torch.tensor(seconds).median().item(), 2),
                    "to_ce": round(ratios.median().item(), 3),
                }
            )

    def measure_groups(self) -> None:
        """Of the teacher and of GKD's student, on the first seed."""
        if self.record.find(stage="groups"):
            return
        name = "gkd-student"
        key = self._key("test", name, self.seeds[0], plan.TUNED_SHAPE, self.tune(name)[0])
        for row in group_rows(self.lab(key["seed"]), self._student(key)[0]):
            self.record.add(row)

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def _report(self, row: Row) -> Row:
        fields = (
            "stage",
            "recipe",
            "seed",
            "shape",
            "learning_rate",
            "margin",
            "weight",
            "warmup",
            "epochs",
        )
        said = " ".join(str(row[field]) for field in fields if field in row)
        scores = [f"{name} {row[name]:.1%}" for name in ("val_tar", "test_tar_1e-2") if name in row]
        print(f"{said}  {' '.join(scores)}  {row.get('seconds', '')}", flush=True)
        return self.record.add(row)


def parser() -> argparse.ArgumentParser:
    build = argparse.ArgumentParser(
        prog="python -m examples.glyph_study.sweep", description=__doc__
    )
    add = build.add_argument
    add("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR",
        help="for runs.jsonl, the networks and the figures; a sweep that was stopped goes on from "
        "what is there (default: out/ beside the program)")  # fmt: skip
    add("--minutes", type=float, default=float("inf"), metavar="N",
        help="start no further run after so many")  # fmt: skip
    add(
        "--seeds", type=int, default=3, metavar="N", help="splits, each with a teacher (default: 3)"
    )
    add("--fonts", type=Path, nargs="+", default=[], metavar="DIR",
        help="further font files to render, such as /usr/share/fonts")  # fmt: skip
    add("--least-faces", type=int, default=plan.LEAST_FACES, metavar="N",
        help=f"characters that so many faces draw (default: {plan.LEAST_FACES})")  # fmt: skip
    add("--identities", type=int, default=plan.IDENTITIES, metavar="N",
        help=f"how many characters to draw (default: {plan.IDENTITIES} of 3,050)")  # fmt: skip
    add("--epochs", type=int, default=plan.SETTINGS.epochs, metavar="N",
        help=f"of each student (default: {plan.SETTINGS.epochs})")  # fmt: skip
    add("--teacher-epochs", type=int, default=plan.SETTINGS.teacher_epochs, metavar="N",
        help=f"(default: {plan.SETTINGS.teacher_epochs})")  # fmt: skip
    add("--progress", action="store_true", help="progress bars")
    return build


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)  # the operations are too small for several
    settings = dataclasses.replace(
        plan.SETTINGS,
        epochs=options.epochs,
        teacher_epochs=options.teacher_epochs,
        progress=options.progress,
    )
    photos = data.render_dejavu(
        settings.image_size,
        least_faces=options.least_faces,
        fonts=data.font_files(options.fonts),
        progress=settings.progress,
    )
    sweep = Sweep(
        photos,
        options.out,
        settings,
        identities=options.identities,
        seeds=options.seeds,
        minutes=options.minutes,
    )
    try:
        sweep.run()
    except OutOfTime:
        print("out of time: run the same command again to go on")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
