"""Command line: see `python -m examples.faces --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# Read when torch starts its threads: ranks that share cores must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist

from ..leave import leave
from . import ranks, recipe, rehearse, run
from .train import Place

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    build = argparse.ArgumentParser(
        prog="python -m examples.faces",
        description="Distils a face recogniser with gkd, verifies teacher and student, and writes "
        "table.md, report.json, roc.png, training.png and the weights. Under torchrun "
        "--nproc-per-node=N it is N ranks, which have the batch between them. A run that was "
        "stopped goes on when it is started again with the same --output.",
    )
    add = build.add_argument
    what = build.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config", metavar="FILE",
        help="a recipe, .toml or .json, or the name of one in examples/faces/configs: authors, "
        "recommended",
    )  # fmt: skip
    what.add_argument(
        "--synthetic", action="store_true",
        help="a rehearsal: writes a small data set of glyphs in the field's formats and runs a "
        "small recipe on it",
    )  # fmt: skip
    what.add_argument(
        "--data", type=Path, metavar="DIR",
        help="the same recipe on your images, one folder per identity; a quarter of the identities "
        "is for verification",
    )  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe, "
        "as JSON or text; gkd.NAME=VALUE for one of the loss")  # fmt: skip
    add("--sharded", action="store_true", help="split heads by class over the ranks")
    add("--output", type=Path, default=HERE / "out", metavar="DIR", help="default: %(default)s")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu talks over gloo, cuda over NCCL with one GPU per rank")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bars")
    return build


def settings_of(options: argparse.Namespace) -> recipe.Recipe:
    """The recipe that the options name.

    Raises:
        ValueError: an error in it.
    """
    values: dict[str, Any] = {}
    if options.config is not None:
        path = Path(options.config)
        if not path.suffix:
            path = HERE / "configs" / f"{path.name}.toml"
        if not path.exists():
            raise ValueError(f"--config {options.config}: no such file")
        values = recipe.read(path)
        where = str(path)
    else:
        where = "the rehearsal's recipe"
        values = dict(rehearse.RECIPE)
    values = recipe.with_settings(values, options.set)
    found = recipe.from_mapping(values, where)
    return replace(found, sharded=True) if options.sharded else found


def main(arguments: list[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    build = parser()
    options = build.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        build.error("--device cuda: this PyTorch sees no CUDA device")
    try:
        given = settings_of(options)
    except ValueError as error:
        build.error(str(error))
    if options.data is not None and not options.data.is_dir():
        build.error(f"--data {options.data} is not a folder")
    distributed = "RANK" in os.environ  # torchrun's
    device = torch.device(options.device)
    if distributed:
        if options.device == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # While the first rank verifies, the others wait.
        patience = datetime.timedelta(hours=6)
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo", timeout=patience)
    if options.device == "cpu" and options.config is None:
        # The networks are too small for more, and a sum must not depend on the number of cores.
        torch.set_num_threads(1)
    place = Place(device, options.output, not options.quiet)
    started = time.perf_counter()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        if options.config is None:
            given = rehearse.prepare(given, options.data, place)
        report = run.run(given, place)
        if ranks.rank() == 0:
            report["seconds"] = time.perf_counter() - started
            (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            print(f"{report['seconds']:.0f} s, wrote {options.output}")
        ranks.barrier()
    except ValueError as error:
        if distributed:  # the other ranks wait for this one
            raise
        print(f"python -m examples.faces: {error}", file=sys.stderr)
        return 1
    finally:
        if distributed:
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main())
