"""Command line: see `python -m examples.distributed --help`."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

# Read when torch starts its threads: ranks that share cores must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist

from ..glyphs import data
from ..glyphs.losses import RECIPES
from ..leave import leave
from .heads import Sharded, Whole
from .train import Settings, Teacher, train


def parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    defaults = Settings()
    build = argparse.ArgumentParser(
        prog="python -m examples.distributed",
        description="Distil a small recogniser whose head is split by class over the processes of "
        "torchrun --nproc-per-node=N -m examples.distributed. Without torchrun it is one process "
        "with the whole head and gkd.loss. Writes each step's losses to ranks_N.json or "
        "one_process.json; examples.distributed.compare compares two of them.",
    )
    add = build.add_argument
    add("--steps", type=int, default=defaults.steps, metavar="N", help="default: %(default)s")
    add("--batch", type=int, default=defaults.batch, metavar="N",
        help="photographs a step, the same on every rank (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="of the split, the weights, the order and the distortions")  # fmt: skip
    add("--identities", type=int, default=1000, metavar="N",
        help="how many to draw; 71%% of them are trained on (default: %(default)s)")  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="one folder of images per identity (default: "
        "the DejaVu faces that come with matplotlib)")  # fmt: skip
    add("--recipe", choices=[n for n, r in RECIPES.items() if r.weight > 0],
        default=defaults.recipe,
        help="of examples/glyphs/losses.py (default: %(default)s)")  # fmt: skip
    add("--learning-rate", type=float, default=defaults.learning_rate, metavar="X",
        help="default: %(default)s")  # fmt: skip
    add("--dtype", choices=["float32", "float64"], default=defaults.dtype,
        help="of the network and the logits (default: %(default)s)")  # fmt: skip
    add("--device", choices=["cpu", "cuda"], default="cpu",
        help="cpu talks over gloo, cuda over NCCL with one GPU per rank")  # fmt: skip
    add("--output", type=Path, default=Path(__file__).parent / "out", metavar="DIR")
    add("--quiet", action="store_true", help="no progress bars")
    return build


def photographs(options: argparse.Namespace, progress: bool) -> data.Split:
    if options.data is not None:
        photos = data.load_folders(options.data, progress=progress)
        return data.split(photos, seed=options.seed)
    photos = data.render_dejavu(progress=progress)
    return data.split(photos, identities=options.identities, seed=options.seed)


def run(options: argparse.Namespace, ranks: int | None) -> None:
    """One rank of `ranks`, or the only process where that is None."""
    started = time.perf_counter()
    first = ranks is None or dist.get_rank() == 0
    progress = first and not options.quiet
    split = photographs(options, progress)
    settings = Settings(
        recipe=options.recipe,
        steps=options.steps,
        batch=options.batch,
        seed=options.seed,
        learning_rate=options.learning_rate,
        device=options.device,
        dtype=options.dtype,
    )
    heads = Whole() if ranks is None else Sharded(split.classes, settings.device)
    teacher = Teacher(split.train, split.classes, settings)
    losses = train(split.train, teacher, heads, settings, progress=progress)
    if not first:
        return
    for step in range(0, settings.steps, max(1, settings.steps // 10)):
        print(f"step {step}: " + ", ".join(f"{n} {x[step]:.6f}" for n, x in losses.items()))
    report = {
        "ranks": ranks,
        "identities": split.classes,
        "teacher_top1": teacher.top1(split.train),
        "seconds": time.perf_counter() - started,
        "settings": asdict(settings),
        "losses": losses,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / ("one_process.json" if ranks is None else f"ranks_{ranks}.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{split.classes} identities, {report['seconds']:.0f} s, wrote {path}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    build = parser()
    options = build.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        build.error("--device cuda: this PyTorch sees no CUDA device")
    for name in ("steps", "batch"):
        least = {"batch": 2}.get(name, 1)
        if getattr(options, name) < least:
            build.error(f"--{name} must be {least} at least, got {getattr(options, name)}")
    # The networks are too small for more, and a sum must not depend on how many cores there are.
    torch.set_num_threads(1)
    if "RANK" not in os.environ:  # torchrun's
        run(options, None)
        return 0
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    try:
        run(options, dist.get_world_size())
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main())
