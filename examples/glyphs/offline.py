"""A student whose teacher is on disk, beside the same student whose teacher runs in every step.

The teacher looks once at every view of every photograph, and `gkd.cache.EmbeddingWriter` keeps its
embeddings. Such a cache serves the augmentations that are in it, and no others: a student sees the
views that the teacher saw, which the seed makes again. (Faces have two, the image and its mirror
image.) The cache's fingerprint is of the teacher and of the views.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch starts its threads; see __main__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import gkd.cache

from . import data
from .augment import distorted, to_float
from .evaluate import top1
from .losses import RECIPES, Recipe
from .models import Recogniser
from .study import TEST_SEED, markdown
from .train import History, Settings, Views, distort, train_student, train_teacher

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Live:
    """Runs the teacher."""

    teacher: Recogniser
    images: Tensor  #: uint8 [views, N, 1, H, W]

    @torch.no_grad()
    def __getitem__(self, which: tuple[int, Tensor]) -> Tensor:
        return self.teacher(to_float(self.images[which]))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Kept:
    """Reads what the teacher said."""

    reader: gkd.cache.EmbeddingReader
    device: str

    def __getitem__(self, which: tuple[int, Tensor]) -> Tensor:
        view, index = which
        return self.reader.read(index, views=view).to(self.device, torch.float32)


@torch.no_grad()
def keep(
    teacher: Recogniser, images: Tensor, directory: Path, dtype: torch.dtype, settings: Settings
) -> gkd.cache.EmbeddingReader:
    """Writes what is not there yet."""
    name = gkd.cache.fingerprint({**teacher.state_dict(), "views": images})
    dimension = teacher.head.shape[1]
    with gkd.cache.EmbeddingWriter(
        directory, dimension=dimension, dtype=dtype, teacher=name
    ) as writer:
        everything = torch.cartesian_prod(*(torch.arange(n) for n in images.shape[:2]))
        todo = everything[writer.missing(everything[:, 1], views=everything[:, 0])]
        bar = tqdm(todo.split(512), desc="cache", unit="batch", disable=not settings.progress)
        for views, samples in (chunk.unbind(1) for chunk in bar):
            embeddings = teacher(to_float(images[views, samples]))
            writer.write(samples, embeddings.to(dtype), views=views)
    return gkd.cache.EmbeddingReader(directory, dimension=dimension, dtype=dtype, teacher=name)


def apart(one: History, other: History) -> tuple[float, float]:
    """The relative difference of the distillation loss in the first step, where both students have
    the same weights; and the largest of both losses in all logged steps."""
    names = ("cross_entropy", "distillation")
    found = [
        abs(a - b) / abs(a)
        for name in names
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True)
    ]
    return found[len(one.step)], max(found)


def step_times(
    recipe: Recipe, cases: dict[str, Views], classes: int, settings: Settings, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step, in turn, round after round: all share what disturbs."""
    count = 12 * settings.batch
    short = dataclasses.replace(settings, epochs=1, log_points=1, progress=False)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in tqdm(range(rounds), desc="times", disable=not settings.progress):
        for name, views in cases.items():
            few = dataclasses.replace(views, labels=views.labels[:count])
            taken[name].append(train_student(recipe, few, classes, short)[2])
    return taken


def compare(
    split: data.Split, recipe: Recipe, settings: Settings, directory: Path, **how: Any
) -> tuple[list[list[str]], tuple[float, float], str]:
    """`how`: dtype, rounds. A table, how far the curves are apart, and a line on the cache."""
    torch.set_num_threads(settings.teacher_threads)
    teacher = train_teacher(split.train, split.classes, settings)
    images = distort(split.train, settings)
    reader = keep(teacher, images, directory, how["dtype"], settings)
    torch.set_num_threads(settings.student_threads)
    labels = split.train.labels.to(settings.device)
    prototypes = F.normalize(teacher.head.detach())
    cases = {
        "live": Views(images, Live(teacher, images), prototypes, labels),
        "from disk": Views(images, Kept(reader, settings.device), prototypes, labels),
    }
    test = distorted(split.closed_test, TEST_SEED)
    histories, scores = {}, {}
    for name, views in cases.items():
        student, histories[name], _ = train_student(
            recipe, views, split.classes, settings, name=f"{name:<9}"
        )
        scores[name] = top1(student, test)
    taken = step_times(recipe, cases, split.classes, settings, how["rounds"])
    ratios = [a / b for a, b in zip(taken["from disk"], taken["live"], strict=True)]
    shares = {"live": 1.0, "from disk": median(ratios)}
    rows = [["teacher", "top-1", "ms/step", "ratio"]]
    for name in cases:
        milliseconds = f"{1e3 * median(taken[name]):.1f}"
        rows.append([name, f"{scores[name]:.1%}", milliseconds, f"{shares[name]:.2f}"])
    facts = gkd.cache.info(directory)
    logits = 2 * split.classes * images.shape[0] * images.shape[1]
    line = (
        f"{directory}: {facts['rows']} embeddings, {facts['bytes']} bytes, {facts['bytes a row']} "
        f"each; all logits in float16 would be {logits:,} bytes"
    )
    return rows, apart(*histories.values()), line


def parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    defaults = Settings()
    build = argparse.ArgumentParser(
        prog="python -m examples.glyphs.offline",
        description="Keep a teacher's embeddings on disk and train a student from there, beside "
        "the same student with a live teacher. Prints how far apart the two are, the time of a "
        "step, and the size on disk.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = build.add_argument
    add("--cache", type=Path, default=Path(__file__).parent / "out" / "teacher", metavar="DIR",
        help="where to keep the embeddings; a run that was stopped goes on")  # fmt: skip
    add("--dtype", choices=DTYPES, default="float16", help="of the embeddings")
    distilling = [name for name, recipe in RECIPES.items() if recipe.weight > 0]
    add("--student", choices=distilling, default="gkd-student", help="of losses.py")
    add("--identities", type=int, default=1000, metavar="N", help="characters; 71%% are classes")
    add("--teacher-epochs", type=int, default=defaults.teacher_epochs, metavar="N")
    add("--epochs", type=int, default=defaults.epochs, metavar="N", help="of the student")
    add("--views", type=int, default=defaults.views, metavar="N", help="of each photograph")
    add("--image-size", type=int, default=defaults.image_size, metavar="N", help="pixels of a side")
    add("--batch", type=int, default=defaults.batch, metavar="N", help="photographs a step")
    add("--rounds", type=int, default=9, metavar="N", help="of measuring the time of a step")
    add("--seed", type=int, default=0, metavar="N", help="of the split, weights and distortions")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ...")
    add("--quiet", action="store_true", help="no progress bars")
    return build


def main(arguments: list[str] | None = None) -> int:
    build = parser()
    options = build.parse_args(arguments)
    least = {"identities": 8, "image_size": 16, "batch": 2}
    for name in (
        "identities",
        "teacher_epochs",
        "epochs",
        "views",
        "image_size",
        "batch",
        "rounds",
    ):
        if getattr(options, name) < least.get(name, 1):
            build.error(f"--{name.replace('_', '-')} must be {least.get(name, 1)} at least")
    settings = Settings(
        device=options.device,
        seed=options.seed,
        image_size=options.image_size,
        batch=options.batch,
        teacher_epochs=options.teacher_epochs,
        epochs=options.epochs,
        views=options.views,
        teacher_threads=torch.get_num_threads(),
        progress=not options.quiet,
    )
    photos = data.render_dejavu(settings.image_size, progress=settings.progress)
    split = data.split(photos, identities=options.identities, seed=settings.seed)
    try:
        rows, difference, cache = compare(
            split,
            RECIPES[options.student],
            settings,
            options.cache,
            dtype=DTYPES[options.dtype],
            rounds=options.rounds,
        )
    except ValueError as error:  # a cache of another teacher, first of all
        build.error(str(error))
    print(f"\n{markdown(rows)}\n")
    first, largest = difference
    print(f"relative difference of the two students' losses: {first:.1e} in the first step, where")
    print(f"their weights are the same; {largest:.1e} at most")
    print(cache)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
