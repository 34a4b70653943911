"""gkd.linear_loss beside the same in steps: ``python -m benchmarks.linear``.

Each contender has a fresh process, for forward and backward of the mean loss with cosine logits.
Memory is the process's peak resident set less the peak once the inputs were made; time the median
of a few steps after one that warms up, the contenders in turn. CPU time, of all threads, is the
figure to trust where other programs run. Prints the ratios, writes a CSV.
"""

from __future__ import annotations

import argparse
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
from benchmarks import table
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


def serve(options: argparse.Namespace) -> None:
    """One contender in this process: prints extra bytes and the loss, then seconds a line read."""
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
    print(peak_bytes() - before, loss, flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        step(f, w, g, v)
        print(time.perf_counter() - start, time.process_time() - cpu_start, flush=True)


class Contender:
    """`serve` in a fresh process, which sleeps but while it is asked."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        words = [sys.executable, "-m", "benchmarks.linear", "--contender", name]
        for option in ("rows", "classes", "dim", "threads", "chunk_rows"):
            value = getattr(options, option)
            if value is not None:
                words += [f"--{option.replace('_', '-')}", str(value)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.name, self.seconds, self.cpu_seconds = name, list[float](), list[float]()
        extra, loss = self._line()
        self.extra_bytes, self.loss = int(extra), float(loss)

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            raise RuntimeError(f"{self.name} ended early")
        return line

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for times, value in zip((self.seconds, self.cpu_seconds), self._line(), strict=True):
            times.append(float(value))

    def end(self) -> None:
        self.process.communicate("")


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
        serve(options)
        return
    torch.set_num_threads(options.threads)
    contenders = [Contender(name, options) for name in ("stepwise", "linear_loss")]
    load_before = round(load(), 2)
    for _ in range(options.repeats):  # in turn: whatever else runs here slows both
        for contender in contenders:
            contender.step()
    lines = []
    for contender in contenders:
        contender.end()
        seconds = statistics.median(contender.seconds)
        lines.append(
            {
                **describe("cpu"),
                "load": load_before,
                "rows": options.rows,
                "classes": options.classes,
                "dim": options.dim,
                "dtype": "float32",
                "chunk_rows": options.chunk_rows or "default",
                "contender": contender.name,
                "extra_bytes": contender.extra_bytes,
                "seconds": f"{seconds:.4f}",
                "cpu_seconds": f"{statistics.median(contender.cpu_seconds):.4f}",
                "loss": f"{contender.loss:.7g}",
            }
        )
        every = " ".join(f"{x:.3f}" for x in contender.seconds)
        print(
            f"{contender.name}: {contender.extra_bytes / 2**20:.0f} MiB, {seconds:.3f} s ({every})"
        )
    memory, taken, cpu = (
        float(lines[1][key]) / float(lines[0][key])
        for key in ("extra_bytes", "seconds", "cpu_seconds")
    )
    print(f"linear_loss / stepwise: memory {memory:.3f}, time {taken:.3f}, CPU time {cpu:.3f}")
    table.write(options.output, lines)


if __name__ == "__main__":
    main()
