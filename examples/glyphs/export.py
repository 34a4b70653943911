"""Trains a small teacher and writes all that a student needs, for programs without Python.

The file is a dictionary of tensors that torch::pickle_load and torch.load read:

* ``images`` uint8 [views, N, 1, S, S], ``labels`` int64 [N]: distorted training photographs
* ``teacher_embeddings`` float [views, N, E], ``teacher_prototypes`` float [C, E]: the teacher's
  cosines are ``teacher_embeddings @ teacher_prototypes.T``
* ``test_images`` uint8 [M, 1, S, S], ``test_labels`` int64 [M]: faces that nobody trained on
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

# Read when torch starts its threads; see __main__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from . import data
from .augment import distorted
from .evaluate import top1
from .train import Settings, look, train_teacher


def export(settings: Settings, identities: int) -> tuple[dict[str, torch.Tensor], float]:
    """The tensors, and the teacher's share of test photographs recognised."""
    photos = data.render_dejavu(settings.image_size, progress=settings.progress)
    split = data.split(photos, identities=identities, seed=settings.seed)
    teacher = train_teacher(split.train, split.classes, settings)
    test = distorted(split.closed_test, settings.seed)
    views = look(teacher, split.train, settings)
    tensors = {
        "images": views.images,
        "labels": views.labels,
        "teacher_embeddings": views.embeddings,
        "teacher_prototypes": views.prototypes,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    # detach: torch::pickle_load takes plain tensors, and the prototypes are a parameter's.
    return {name: t.detach().contiguous() for name, t in tensors.items()}, top1(teacher, test)


def parser() -> argparse.ArgumentParser:
    build = argparse.ArgumentParser(
        prog="python -m examples.glyphs.export",
        description="Train a teacher on glyphs and write photographs, labels and what the teacher "
        "makes of them, for examples/cpp.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = build.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="where to write the tensors")
    add("--identities", type=int, default=200, metavar="N", help="characters; 71%% are classes")
    add("--teacher-epochs", type=int, default=8, metavar="N", help="of the teacher")
    add("--views", type=int, default=4, metavar="N", help="distortions of each photograph")
    add("--image-size", type=int, default=24, metavar="N", help="pixels of a side")
    add("--batch", type=int, default=64, metavar="N", help="photographs a step")
    add("--seed", type=int, default=0, metavar="N", help="of the split, weights and distortions")
    add("--quiet", action="store_true", help="no progress bars")
    return build


def main(arguments: list[str] | None = None) -> int:
    build = parser()
    options = build.parse_args(arguments)
    least = {"identities": 8, "image_size": 16, "batch": 2}
    for name in ("identities", "teacher_epochs", "views", "image_size", "batch"):
        if getattr(options, name) < least.get(name, 1):
            build.error(f"--{name.replace('_', '-')} must be {least.get(name, 1)} at least")
    if not options.out.parent.is_dir():
        build.error(f"--out {options.out}: {options.out.parent} is not a folder")
    settings = Settings(
        seed=options.seed,
        image_size=options.image_size,
        batch=options.batch,
        teacher_epochs=options.teacher_epochs,
        views=options.views,
        progress=not options.quiet,
    )
    started = time.perf_counter()
    tensors, accuracy = export(settings, options.identities)
    torch.save(tensors, options.out)
    print(
        f"{len(tensors['teacher_prototypes'])} classes, {len(tensors['labels'])} photographs in "
        f"{options.views} views; the teacher recognises {accuracy:.1%} of "
        f"{len(tensors['test_labels'])} test photographs"
    )
    size = options.out.stat().st_size / 2**20
    print(f"wrote {options.out}, {size:.1f} MiB, in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
