"""Times and peak memory of one contender.

Contenders take turns within a round, so that a ratio compares neighbours in time. On CUDA each run
is timed by events, after a write that pushes its inputs out of the second-level cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import FORWARD_ONLY

Loss = Callable[[Tensor, Tensor], Tensor]
STAGES = ("forward", "forward_backward")


def logits(
    rows: int, classes: int, dtype: torch.dtype, distribution: str, device: str
) -> tuple[Tensor, Tensor]:
    """Student (which needs a gradient) and teacher; or saved logits from a .pt file."""
    generator = torch.Generator().manual_seed(rows * 7919 + classes)
    if distribution.endswith(".pt"):
        saved = torch.load(distribution, weights_only=True)
        pair = [saved["student"], saved["teacher"]]
        pair = [x[:rows, :classes].contiguous() for x in pair]
    else:
        scale = {"flat": 1.0, "peaked": 6.0}[distribution]
        teacher = torch.randn(rows, classes, generator=generator) * scale
        student = 0.7 * teacher + 0.7 * scale * torch.randn(rows, classes, generator=generator)
        if distribution == "peaked":  # a recogniser's margin: one class far above the others
            at = torch.randint(classes, (rows, 1), generator=generator)
            teacher.scatter_add_(1, at, torch.full((rows, 1), 30.0))
            student.scatter_add_(1, at, torch.full((rows, 1), 20.0))
        pair = [student, teacher]
    student, teacher = (x.to(device=device, dtype=dtype) for x in pair)
    return student.requires_grad_(), teacher


def run_once(loss: Loss, student: Tensor, teacher: Tensor, stage: str) -> None:
    """A forward, or a forward and backward that leaves student.grad."""
    if stage == "forward":
        with torch.no_grad():
            loss(student, teacher)
    else:
        student.grad = None
        loss(student, teacher).backward()


class Timer:
    """Seconds of one call."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            cache = torch.cuda.get_device_properties(0).L2_cache_size
            self.flush = torch.empty(4 * cache, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], None]) -> float:
        if self.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


@dataclass
class Sample:
    """Seconds per call, and ratios to the first contender of the same rounds."""

    seconds: list[float]
    ratios: list[float]


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p20, median, p80."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def interleave(
    contenders: dict[str, Loss], student: Tensor, teacher: Tensor, stage: str, budget: float
) -> dict[str, Sample]:
    """Rounds of every contender in turn until `budget` seconds are gone, 5 to 100 of them."""
    timer = Timer(student.device.type)
    calls = {
        name: partial(
            run_once, loss, student, teacher, "forward" if name in FORWARD_ONLY else stage
        )
        for name, loss in contenders.items()
    }
    for call in calls.values():  # the first compiles, the second grows the allocator
        call()
        call()
    samples = {name: Sample([], []) for name in calls}
    start = time.perf_counter()
    for done in range(100):
        if done >= 5 and time.perf_counter() - start > budget:
            break
        taken = {name: timer(call) for name, call in calls.items()}
        first = next(iter(taken.values()))
        for name, seconds in taken.items():
            samples[name].seconds.append(seconds)
            samples[name].ratios.append(seconds / first)
    student.grad = None
    return samples


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_bytes(loss: Loss, student: Tensor, teacher: Tensor, stage: str) -> int:
    """Memory over the inputs while `loss` runs: allocator's peak on CUDA, resident on the CPU."""
    small = student.detach()[:1, :64].clone().requires_grad_(), teacher[:1, :64].clone()
    run_once(loss, *small, stage)
    if student.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(loss, student, teacher, stage)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    run_once(loss, student, teacher, stage)
    return _status("VmHWM") - before


def peak_bytes_apart(
    name: str, rows: int, classes: int, dtype: str, distribution: str, stage: str, threads: int
) -> int:
    """peak_bytes on the CPU in a process of its own; -1 where the system cannot say."""
    words = [name, str(rows), str(classes), dtype, distribution, stage, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 else -1
