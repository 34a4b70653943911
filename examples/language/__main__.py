"""Command line: see `python -m examples.language --help`."""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

# Read when torch starts its threads; see examples/glyphs/__main__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

import gkd.cache

from . import report, text
from .losses import SHARES, Cached, Live, Loss, Renormalised, labels
from .model import LanguageModel, parameters
from .train import (
    Settings,
    built,
    described,
    keep,
    likeliest,
    scored,
    share_outside,
    step_times,
    train_student,
    train_teacher,
)


def parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    defaults = Settings()
    build = argparse.ArgumentParser(
        prog="python -m examples.language",
        description="Distil a small language model from a larger one that is kept on disk, beside "
        "a live teacher, the usual use of a kept one, and none. Prints validation perplexity, size "
        "and time of a step. The text is docstrings of Python, torch and numpy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = build.add_argument
    add("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR",
        help="for teacher.pt, the cache, and CSV files of results; teacher and cache are made "
        "where they are not there")  # fmt: skip
    add("--seeds", type=int, default=3, metavar="N", help="students of each kind")
    add("--times", action="store_true", help="only measure the times of a step, into times.csv")
    add("--rounds", type=int, default=15, metavar="N", help="of measuring times")
    add("--characters", type=int, metavar="N", help="of text that are enough; all unless given")
    add("--vocabulary", type=int, default=defaults.vocabulary, metavar="N", help="words")
    add("--group-size", type=int, default=defaults.group_size, metavar="K",
        help="classes of the teacher that are kept for a token")  # fmt: skip
    add("--teacher-steps", type=int, default=defaults.teacher_steps, metavar="N")
    add("--kept", type=int, default=defaults.kept, metavar="N",
        help=f"sequences of {defaults.length} tokens that students learn from")  # fmt: skip
    add("--epochs", type=int, default=defaults.epochs, metavar="N", help="of the students")
    add("--quiet", action="store_true", help="no progress bars")
    return build


def opened_teacher(path: Path, train: Tensor, settings: Settings) -> LanguageModel:
    """The teacher that is there, or a new one.

    Raises:
        ValueError: the one there was trained with other settings, or on other text.
    """
    about = {**described(settings), "text": gkd.cache.fingerprint(train.numpy().tobytes())}
    if not path.exists():
        teacher = train_teacher(train, settings)
        torch.save({"about": about, "weights": teacher.state_dict()}, path)
        return teacher
    stored = torch.load(path)
    if stored["about"] != about:
        raise ValueError(f"{path} was trained with other settings or text: remove it, or use --out")
    teacher = built(settings.teacher, settings, seed=0)
    teacher.load_state_dict(stored["weights"])
    return teacher.eval()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    machine = f"{torch.get_num_threads()} CPU cores"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["machine", *rows[0]], lineterminator="\n")
        table.writeheader()
        table.writerows({"machine": machine, **row} for row in rows)


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Everything that the CSV files hold, as far as `options` ask for it."""
    words = text.corpus(
        text.documents(options.characters, progress=settings.progress), settings.vocabulary
    )
    train, validation = (
        text.sequences(x, settings.length) for x in (words.train, words.validation)
    )
    validation = validation[:1024]
    kept = train[: settings.kept]
    print(
        f"{len(words.train):,} tokens to train on, of which students see {kept[:, 1:].numel():,}; "
        f"{words.rare:.1%} are outside the vocabulary of {len(words.vocabulary):,}",
        flush=True,
    )
    teacher = opened_teacher(options.out / "teacher.pt", train, settings)
    reader = keep(teacher, kept, settings, options.out / "cache")
    losses: dict[tuple[str, float], Loss] = {("labels", 1.0): labels}
    for share in SHARES:
        losses["live", share] = Live(teacher, share)
        losses["cached", share] = Cached(reader, share)
        losses["renormalised", share] = Renormalised(reader, share, settings.group_size)
    if not options.times:
        train_all(losses, teacher, kept, validation, options, settings)
    timed = {name: loss for (name, share), loss in losses.items() if share in (1.0, SHARES[0])}
    times = step_times(timed, kept, settings, steps=5, rounds=options.rounds)
    write(options.out / "times.csv", [{**x, "seconds": f"{x['seconds']:.5f}"} for x in times])
    write(options.out / "sizes.csv", sizes(options.out, len(reader), settings))


def train_all(
    losses: dict[tuple[str, float], Loss],
    teacher: LanguageModel,
    kept: Tensor,
    validation: Tensor,
    options: argparse.Namespace,
    settings: Settings,
) -> None:
    """Each kind of student from each seed, into runs.csv."""
    likely = likeliest(teacher, validation, settings.group_size)
    outside = share_outside(validation, likely)
    rows: list[dict[str, Any]] = []

    def add(method: str, share: float | str, seed: int, score: tuple[float | str, float]) -> None:
        found = [x if isinstance(x, str) else f"{x:.4f}" for x in score]
        about = {"method": method, "cross_entropy": share, "seed": seed}
        rows.append({**about, "perplexity": found[0], "tail": found[1]})
        write(options.out / "runs.csv", rows)

    add("text", "", 0, ("", outside))
    add("teacher", 1.0, 0, scored(teacher, validation, likely))
    for seed in range(options.seeds):
        for (name, share), loss in losses.items():
            label = f"{seed} {name:<12} {share:.1f}"
            student = train_student(loss, kept, settings, seed=seed, name=label)
            add(name, share, seed, scored(student, validation, likely))
    print(f"parameters: teacher {parameters(teacher):,}, a student {parameters(student):,}")


def sizes(out: Path, tokens: int, settings: Settings) -> list[dict[str, Any]]:
    """Bytes of what is on disk, and of what would be without groups."""
    found = {
        "cache": sum(path.stat().st_size for path in (out / "cache").iterdir()),
        "all logits in float16": 2 * settings.vocabulary * tokens,
    }
    return [{"what": what, "rows": tokens, "bytes": size} for what, size in found.items()]


def main(arguments: list[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    build = parser()
    options = build.parse_args(arguments)
    least = {"vocabulary": 8, "characters": 10_000}
    for name in (*least, "seeds", "rounds", "group_size", "teacher_steps", "kept", "epochs"):
        value = getattr(options, name)
        if value is not None and value < least.get(name, 1):
            build.error(f"--{name.replace('_', '-')} must be {least.get(name, 1)} at least")
    started = time.perf_counter()
    settings = Settings(
        vocabulary=options.vocabulary,
        group_size=options.group_size,
        teacher_steps=options.teacher_steps,
        kept=options.kept,
        epochs=options.epochs,
        progress=not options.quiet,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        run(options, settings)
    except ValueError as error:  # a teacher, or a cache, with other settings
        build.error(str(error))
    found = report.load(options.out)
    if found["runs"]:
        print(f"\n{report.table(found)}\n")
    print(f"wrote CSV files to {options.out}; {time.perf_counter() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
