"""The class-sharded loss on 1 and 2 CPU processes over gloo, beside gkd.loss of the same rows:
``python -m benchmarks.sharded``.

Lines of kind ``call`` are forward and backward between barriers, as the slowest rank sees it, or a
call's collectives with nothing between them; of kind ``stage`` one stage of a rank's own work
without collectives, on a rank that has all classes. Each rank has one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.multiprocessing as mp
from torch import Tensor

import gkd
from benchmarks import table
from benchmarks.machine import describe, load
from benchmarks.measure import logits, quantiles

SETTINGS: dict[str, Any] = {
    "threshold": 0.93, "group_size": None, "temperature": 4.0, "primary_weight": 8.0,
    "binary_weight": 1.0, "secondary_weight": 0.0, "coupled": False, "rank_by": "teacher",
    "reduction": "mean", "ignore_index": -100,
}  # fmt: skip
#: The first has the least work per collective, the others the heads of three data sets.
SHAPES = ((16, 10_000), (16, 85_742), (4, 360_232), (1, 2_059_906))


def seconds(call: Callable[[], object], budget: float, together: bool) -> list[float]:
    """Each of 5 to 200 calls; with `together` the slowest rank's, and as many on all ranks."""
    taken: list[float] = []
    start = time.perf_counter()
    for done in range(202):
        if together:
            dist.barrier()
        begin = time.perf_counter()
        call()
        # The second number: whether this rank has had enough.
        mine = torch.tensor([time.perf_counter() - begin, time.perf_counter() - start > budget])
        if together:
            dist.all_reduce(mine, dist.ReduceOp.MAX)
        if done >= 2:  # the first agrees on settings, the second grows the allocator
            taken.append(mine[0].item())
        if done >= 7 and mine[1]:
            break
    return taken


def messages(rows: int, dtype: torch.dtype) -> list[tuple[Tensor, str]]:
    """What a rank sends in a call, and how it is reduced; see csrc/math/messages.h."""
    spreads = {torch.float32: 3, torch.float64: 6}.get(dtype, 2)
    amounts = (torch.ones(rows, 2050, dtype=torch.int64), "sum")
    return [
        (torch.ones(rows, 2, dtype=torch.int64), "max"),
        (torch.ones(rows, 2048, dtype=torch.int32), "sum"),
        *[amounts] * spreads,
        (torch.ones(rows, 13, dtype=torch.float64), "gather"),
        (torch.ones(rows, 2, dtype=torch.float64), "gather"),
    ]


def collectives(sent: list[tuple[Tensor, str]]) -> None:
    """The collectives of csrc/sharded.cpp, one after another."""
    group = dist.group.WORLD
    for message, how in sent:
        if how == "gather":
            funcol.wait_tensor(funcol.all_gather_tensor(message, 0, group))
        else:
            funcol.wait_tensor(funcol.all_reduce(message, how, group))


def calls_of(student: Tensor, teacher: Tensor, rank: int, world_size: int) -> dict[str, Any]:
    """What is timed as a whole: name, and forward and backward of it."""
    classes = student.shape[1]
    start, end = classes * rank // world_size, classes * (rank + 1) // world_size
    mine, goal = student[:, start:end].detach().contiguous(), teacher[:, start:end].contiguous()
    sharded = partial(gkd.distributed.loss, class_start=start, num_classes=classes)
    whole = student.detach().clone().requires_grad_()

    def both(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        x.grad = None
        loss(x, y).backward()

    calls = {
        f"sharded over {world_size}": partial(both, sharded, mine.requires_grad_(), goal),
        "collectives": partial(collectives, messages(len(student), student.dtype)),
    }
    if world_size == 1:
        calls["gkd.loss"] = partial(both, gkd.loss, whole, teacher)
    return calls


def stages_of(student: Tensor, teacher: Tensor) -> dict[str, Callable[[], object]]:
    """One rank's stages by name; their inputs are computed here, of a rank that has all."""
    ops, classes = torch.ops.gkd, student.shape[1]
    settings = SETTINGS
    logit = (student.detach(), teacher, None, 0, classes)
    extremes = ops._shard_extremes(*logit, **settings)
    counts = ops._shard_counts(*logit, extremes, **settings)
    nothing = torch.empty(0, dtype=torch.int64)
    amounts = ops._shard_histogram(*logit, extremes, counts, nothing, **settings)
    search, cut = ops._shard_refine(*logit, extremes, amounts, nothing, **settings)
    moments = ops._shard_moments(*logit, cut, **settings)[None]
    kl = ops._shard_gradient(*logit, cut, moments, True, **settings)[1][None]
    return {
        "extremes": partial(ops._shard_extremes, *logit, **settings),
        "counts": partial(ops._shard_counts, *logit, extremes, **settings),
        "first amounts": partial(
            ops._shard_histogram, *logit, extremes, counts, nothing, **settings
        ),
        "later amounts": partial(
            ops._shard_histogram, *logit, extremes, counts, search, **settings
        ),
        "narrow": partial(ops._shard_refine, *logit, extremes, amounts, nothing, **settings),
        "moments": partial(ops._shard_moments, *logit, cut, **settings),
        "emit": partial(ops._shard_gradient, *logit, cut, moments, True, **settings),
        "loss": partial(ops._shard_loss, *logit, moments, kl, **settings),
    }


def measure(rank: int, world_size: int, folder: str, options: argparse.Namespace) -> None:
    """A rank; the first writes its lines to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet{world_size}", None, world_size, rank)
    lines: list[dict[str, Any]] = []
    for rows, classes in SHAPES[: options.shapes]:
        for dtype in options.dtypes:
            student, teacher = logits(rows, classes, getattr(torch, dtype), "peaked", "cpu")
            kinds = [("call", calls_of(student, teacher, rank, world_size), True)]
            if world_size == 1:
                kinds.append(("stage", stages_of(student, teacher), False))
            for kind, calls, together in kinds:
                for name, call in calls.items():
                    p20, median, p80 = quantiles(seconds(call, options.budget, together))
                    lines.append(
                        {
                            "kind": kind, "name": name, "ranks": world_size, "rows": rows,
                            "classes": classes, "dtype": dtype, "load": round(load(), 2),
                            "us_p20": round(p20 * 1e6, 1), "us_median": round(median * 1e6, 1),
                            "us_p80": round(p80 * 1e6, 1),
                            "ns_per_class": round(median * 1e9 / (rows * classes), 4),
                        }
                    )  # fmt: skip
    if rank == 0:
        torch.save(lines, f"{folder}/{world_size}")
    dist.destroy_process_group()
    # On the interpreter's own way out, torch's threads of closed connections sometimes abort.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per line")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sharded_cpu.csv"))
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for world_size in (1, 2):
            mp.spawn(measure, (world_size, folder, options), nprocs=world_size)
            lines += torch.load(f"{folder}/{world_size}")
    machine = {**describe("cpu"), "threads": 1}
    for line in lines:
        print(
            f"{line['rows']:3} x {line['classes']:9,} {line['dtype']:8} {line['name']:14}"
            f" {line['us_median']:10.1f} us {line['ns_per_class']:8.3f} ns per class"
        )
    table.write(options.output, [{**machine, **line} for line in lines])


if __name__ == "__main__":
    main()
