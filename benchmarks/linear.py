"""gkd.linear_loss beside the same in steps: ``python -m benchmarks.linear``.

Each contender runs in a fresh process, forward and backward of the mean loss with cosine logits.
Memory is the process's peak resident set less the peak once the inputs were made; time the median
of a few steps after one that warms up. Prints the ratios and writes a CSV.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import gkd
from benchmarks.machine import describe, load

SCALE = 64.0


def stepwise(f: Tensor, w: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """What a user would write."""
    student = SCALE * F.linear(F.normalize(f), F.normalize(w))
    with torch.no_grad():
        teacher = SCALE * F.linear(F.normalize(g), F.normalize(v))
    return gkd.loss(student, teacher)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def measure(options: argparse.Namespace) -> None:
    """One contender in this process: prints bytes, seconds and the loss."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shapes = (options.rows, options.dim), (options.classes, options.dim)
    f, w, g, v = (torch.randn(shape) for shape in shapes * 2)
    f.requires_grad_()
    w.requires_grad_()
    # Libraries make their workspaces and threads before the count begins.
    small = [x[:64].detach().clone().requires_grad_(x.requires_grad) for x in (f, w, g, v)]

    def step(f: Tensor, w: Tensor, g: Tensor, v: Tensor) -> float:
        f.grad = w.grad = None
        if options.contender == "stepwise":
            loss = stepwise(f, w, g, v)
        else:
            loss = gkd.linear_loss(f, w, g, v, scale=SCALE, chunk_rows=options.chunk_rows)
        loss.backward()
        return loss.item()

    step(*small)
    before = peak_bytes()
    loss = step(f, w, g, v)
    extra = peak_bytes() - before
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        step(f, w, g, v)
        seconds.append(time.perf_counter() - start)
    print(extra, statistics.median(seconds), loss)


def apart(contender: str, options: argparse.Namespace) -> tuple[int, float, float]:
    """`measure` in a fresh process."""
    words = [sys.executable, "-m", "benchmarks.linear", "--contender", contender]
    for name in ("rows", "classes", "dim", "threads", "repeats", "chunk_rows"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    extra, seconds, loss = done.stdout.split()[-3:]
    return int(extra), float(seconds), float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--classes", type=int, default=360_232)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--chunk-rows", type=int, help="linear_loss's own choice unless given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contender", choices=["stepwise", "linear_loss"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/linear.csv"))
    options = parser.parse_args()
    if options.contender:
        measure(options)
        return
    torch.set_num_threads(options.threads)
    lines = []
    for contender in ("stepwise", "linear_loss"):
        load_before = round(load(), 2)
        extra, seconds, loss = apart(contender, options)
        lines.append(
            {
                **describe("cpu"),
                "load": load_before,
                "rows": options.rows,
                "classes": options.classes,
                "dim": options.dim,
                "dtype": "float32",
                "chunk_rows": options.chunk_rows or "default",
                "contender": contender,
                "extra_bytes": extra,
                "seconds": f"{seconds:.4f}",
                "loss": f"{loss:.7g}",
            }
        )
        print(f"{contender}: {extra / 2**20:.0f} MiB, {seconds:.3f} s, loss {loss:.7g}", flush=True)
    memory, taken = (
        float(lines[1][key]) / float(lines[0][key]) for key in ("extra_bytes", "seconds")
    )
    print(f"linear_loss / stepwise: memory {memory:.3f}, time {taken:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    print(options.output)


if __name__ == "__main__":
    main()
