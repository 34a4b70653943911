"""A training step of a face head, cosines in and their gradient out: ``python -m benchmarks.step``.

training is gkd.training_loss. The others are what stands in its place: usual (scale, margin by
index, F.cross_entropy, GKD in plain PyTorch), with_gkd (the same with gkd.loss), with_kd (with
plain KD); each compiled too. loss is gkd.loss alone, and parts F.cross_entropy and gkd.loss, of
finished logits: what of a step is not copies.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import gkd
from benchmarks import table
from benchmarks.contenders import plain_kd, user
from benchmarks.machine import describe, load
from benchmarks.measure import interleave, peak_bytes, quantiles

SCALE, MARGIN = 64.0, 0.4
SHAPES = ((16, 85_742), (4, 360_232), (1, 2_059_906))
Step = Callable[[Tensor, Tensor], Tensor]


def cosines(rows: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Of a random 512-d head: nearly all near 0, the class `row` of each row near 0.6."""
    generator = torch.Generator().manual_seed(classes)
    teacher = torch.randn(rows, classes, generator=generator) / 512**0.5
    student = teacher + 0.02 * torch.randn(rows, classes, generator=generator)
    own = torch.arange(rows)
    student[own, own], teacher[own, own] = 0.6, 0.7
    return student.to(device).requires_grad_(), teacher.to(device)


def classes_of(student: Tensor) -> Tensor:
    return torch.arange(len(student), device=student.device)


def usual(distillation: Step, student: Tensor, teacher: Tensor) -> Tensor:
    """A step as it is written: the margin by index, then both losses."""
    target = classes_of(student)
    logits = student.clone()
    logits[target, target] -= MARGIN
    cross_entropy = F.cross_entropy(logits * SCALE, target)
    return cross_entropy + distillation(student * SCALE, teacher * SCALE)


def with_target(student: Tensor, teacher: Tensor) -> Tensor:
    return gkd.loss(student, teacher, classes_of(student))


def training(student: Tensor, teacher: Tensor) -> Tensor:
    return gkd.training_loss(
        student, teacher, classes_of(student), scale=SCALE, margin=MARGIN
    ).total


def parts(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student, classes_of(student)) + with_target(student, teacher)


def of_finished(loss: Step, student: Tensor, teacher: Tensor) -> Step:
    """A loss of scaled logits that are there already, whatever it is called with."""
    logits, fixed = (student.detach() * SCALE).requires_grad_(), teacher * SCALE

    def run(_student: Tensor, _teacher: Tensor) -> Tensor:
        logits.grad = None
        return loss(logits, fixed)

    return run


def steps(student: Tensor, teacher: Tensor, compiled: bool) -> dict[str, Step]:
    """training first: the others are compared with it."""
    written = {
        "usual": partial(usual, user),
        "with_gkd": partial(usual, with_target),
        "with_kd": partial(usual, plain_kd),
    }
    found: dict[str, Step] = {"training": training}
    for name, loss in {"loss": with_target, "parts": parts}.items():
        found[name] = of_finished(loss, student, teacher)
    found |= written
    if compiled:
        for name, step in written.items():
            found[f"{name}_compiled"] = torch.compile(step, dynamic=False)
    return found


def peak_apart(name: str, rows: int, classes: int, options: argparse.Namespace) -> int:
    """peak_bytes in a process of its own, where no other step has left memory behind; -1 for steps
    that keep logits of their own."""
    if name in ("loss", "parts"):
        return -1
    words = ["--device", options.device, "--threads", str(options.threads)]
    words += ["--peak", name, str(rows), str(classes)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *words],
        # glibc then returns freed tensors to the system, so that the step's own show.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 else -1


def print_peak(name: str, rows: int, classes: int, device: str) -> None:
    student, teacher = cosines(rows, classes, device)
    step = steps(student, teacher, name.endswith("compiled"))[name]
    print(peak_bytes(step, student, teacher, "forward_backward"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per shape")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.csv"))
    parser.add_argument("--peak", nargs=3, help="of one step at rows x classes, and no more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak[0], *map(int, options.peak[1:]), options.device)
        return
    machine = describe(options.device)
    lines = []
    for rows, classes in SHAPES:
        torch.compiler.reset()  # a shape counts towards the limit of compilations
        student, teacher = cosines(rows, classes, options.device)
        found = steps(student, teacher, not options.no_compile)
        samples = interleave(found, student, teacher, "forward_backward", options.budget)
        for name, sample in samples.items():
            p20, median, p80 = (x / rows / classes * 1e9 for x in quantiles(sample.seconds))
            low, ratio, high = quantiles(sample.ratios)
            peak = peak_apart(name, rows, classes, options)
            lines.append(
                {
                    **machine,
                    "device": options.device,
                    "load": round(load(), 2),
                    "rows": rows,
                    "classes": classes,
                    "step": name,
                    "rounds": len(sample.seconds),
                    "ns_per_class_p20": f"{p20:.4f}",
                    "ns_per_class_median": f"{median:.4f}",
                    "ns_per_class_p80": f"{p80:.4f}",
                    "ratio_to_training_p20": f"{low:.3f}",
                    "ratio_to_training_median": f"{ratio:.3f}",
                    "ratio_to_training_p80": f"{high:.3f}",
                    "peak_bytes": peak,
                    "bytes_of_one_tensor": rows * classes * 4,
                }
            )
            print(
                f"{rows}x{classes} {name}: {median:.2f} ns/class [{p20:.2f}, {p80:.2f}], "
                f"{ratio:.2f}x training [{low:.2f}, {high:.2f}]"
                + (f", peak {peak / 2**20:.1f} MiB" if peak >= 0 else ""),
                flush=True,
            )
    table.write(options.output, lines)


if __name__ == "__main__":
    main()
