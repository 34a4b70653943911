"""Command line: see `python -m examples.glyphs --help`."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

# Read when torch starts its threads: waiting threads that spin take the cores from other programs,
# and on a busy machine make a step up to a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from . import data, figures, study
from .losses import RECIPES
from .train import Settings

DEMO_IDENTITIES = 1000


def parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    defaults = Settings()
    build = argparse.ArgumentParser(
        prog="python -m examples.glyphs",
        description="Distil a small recogniser with Grouped Knowledge Distillation. Every "
        "Unicode character is an identity and each of twelve DejaVu faces photographs it once; "
        "--data takes photographs of your own. Prints a table and writes results.json and PNG "
        "figures.",
        epilog="Every figure that is printed at the end comes from photographs and characters "
        "that were not trained on. --tune looks at the validation characters alone.",
    )
    add = build.add_argument
    add("--data", type=Path, metavar="DIR", help="one folder per identity with three image files "
        "or more (default: the DejaVu faces that come with matplotlib)")  # fmt: skip
    add("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR",
        help="for results.json and the figures (default: out/ beside the program)")  # fmt: skip
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add("--seed", type=int, default=0, metavar="N",
        help="of the split, the weights, the order and the distortions; the same seed gives "
        "the same figures (default: 0)")  # fmt: skip
    add("--identities", type=int, metavar="N", help="how many to draw, split into known (71%%), "
        f"validation (10%%) and test (19%%); default {DEMO_IDENTITIES}, with --data "
        "all")  # fmt: skip
    add("--students", default=",".join(RECIPES), metavar="LIST",
        help=f"which to train, of {', '.join(RECIPES)} (default: all)")  # fmt: skip
    add("--epochs", type=int, default=defaults.epochs, metavar="N",
        help=f"of each student (default: {defaults.epochs})")  # fmt: skip
    add("--teacher-epochs", type=int, default=defaults.teacher_epochs, metavar="N",
        help=f"of the teacher (default: {defaults.teacher_epochs})")  # fmt: skip
    add("--batch", type=int, default=defaults.batch, metavar="N",
        help=f"photographs a step (default: {defaults.batch})")  # fmt: skip
    add("--width", type=int, default=defaults.width, metavar="N",
        help="channels of the student's first stage; its size grows with the square "
        f"(default: {defaults.width}, the teacher has 32)")  # fmt: skip
    add("--image-size", type=int, default=defaults.image_size, metavar="N",
        help=f"pixels of a side (default: {defaults.image_size})")  # fmt: skip
    add("--threads", type=int, metavar="N", help="of the CPU (default: PyTorch's choice "
        "for the teacher, one for students, which are too small to share)")  # fmt: skip
    add("--tune", action="store_true", help="try a grid of weights for each student and print "
        "what it reaches on validation, instead of the table")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bars")
    return build


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        device=options.device,
        seed=options.seed,
        image_size=options.image_size,
        batch=options.batch,
        width=options.width,
        teacher_epochs=options.teacher_epochs,
        epochs=options.epochs,
        teacher_threads=options.threads or torch.get_num_threads(),
        student_threads=options.threads or Settings.student_threads,
        progress=not options.quiet,
    )


def _check(build: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The students' names; what cannot work ends here with one sentence."""
    students = [name.strip() for name in options.students.split(",") if name.strip()]
    unknown = [name for name in students if name not in RECIPES]
    if unknown or not students:
        build.error(f"--students takes {', '.join(RECIPES)}, got {options.students!r}")
    for name in ("epochs", "teacher_epochs", "batch", "width", "image_size", "threads"):
        value = getattr(options, name)
        least = {"image_size": 16, "batch": 2}.get(name, 1)
        if value is not None and value < least:
            build.error(f"--{name.replace('_', '-')} must be {least} at least, got {value}")
    if options.data is not None and not options.data.is_dir():
        build.error(f"--data {options.data} is not a folder")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        build.error(f"--device {options.device}: this PyTorch sees no CUDA device")
    return students


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    build = parser()
    options = build.parse_args(arguments)
    students = _check(build, options)
    started = time.perf_counter()
    settings = settings_of(options)
    # Read by cuBLAS at its first use: without it, sums on CUDA may differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    identities = options.identities
    try:
        if options.data is not None:
            photos = data.load_folders(
                options.data, settings.image_size, progress=settings.progress
            )
        else:
            photos = data.render_dejavu(settings.image_size, progress=settings.progress)
            identities = identities or DEMO_IDENTITIES
        split = data.split(photos, identities=identities, seed=settings.seed)
    except ValueError as error:
        build.error(str(error))
    print(
        f"{len(photos.names)} identities, of which {split.classes} known, "
        f"{split.validation.labels.unique().numel()} validation, "
        f"{split.open_test.labels.unique().numel()} test; "
        f"{len(split.train.labels)} photographs to train on",
        flush=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tune:
        found = study.tune(split, students, settings)
        (options.out / "tune.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{study.tune_table(found)}\n")
        return 0
    report, views, logits = study.run(split, students, settings)
    paths = figures.save_all(report, split, views, options.out)
    report["seconds"] = time.perf_counter() - started
    torch.save(logits, options.out / "logits.pt")
    results = options.out / "results.json"
    results.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{study.table(report)}\n")
    print("top-1: test faces of known characters. TAR: true accepts at a false accept rate of")
    print("1e-2 and 1e-3, on characters nobody trained on. All photographs distorted.")
    print("\n".join(f"wrote {path}" for path in [results, options.out / "logits.pt", *paths]))
    print(f"{report['seconds']:.0f} s in all. One seed: differences of a few points are noise.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
