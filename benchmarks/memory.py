"""Peak memory of one contender on the CPU: a process of its own, started by measure.py."""

from __future__ import annotations

import sys

import torch

from benchmarks.contenders import available
from benchmarks.measure import logits, peak_bytes


def main() -> None:
    name, rows, classes, dtype, distribution, stage, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    student, teacher = logits(int(rows), int(classes), getattr(torch, dtype), distribution, "cpu")
    loss = next(c for c in available("cpu", compiled=True) if c.name == name).make()
    print(peak_bytes(loss, student, teacher, stage))


if __name__ == "__main__":
    main()
