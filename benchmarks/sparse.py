"""gkd.sparse_loss against gkd.loss of the whole teacher: ``python -m benchmarks.sparse``.

Forward and backward of the mean loss, in turns, with a copy of the bytes that sparse_loss moves
(the student's logits once, the gradient once) beside them. Each round gives a ratio, which is to be
0.75 at most.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import torch

import gkd
from benchmarks.machine import describe, load
from benchmarks.measure import Timer, logits, quantiles

#: (rows, classes): faces, and a language model's tokens.
SHAPES = ((32, 85_742), (16, 151_936))
SIZES = (64, 256, 1_000)
LEAST = 0.75


def times(
    rows: int, classes: int, size: int, dtype: torch.dtype, distribution: str, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each contender, by round."""
    student, teacher = logits(rows, classes, dtype, distribution, "cpu")
    target = torch.randint(classes, (rows,))
    kept = gkd.teacher_group(teacher, target, group_size=size)
    bytes_of = torch.empty_like(student)

    def clear(call):  # type: ignore[no-untyped-def]
        student.grad = None
        call().backward()

    contenders = {
        "sparse_loss": lambda: clear(lambda: gkd.sparse_loss(student, kept, target)),
        "loss": lambda: clear(lambda: gkd.loss(student, teacher, target, group_size=size)),
        "training_sparse_loss": lambda: clear(
            lambda: gkd.training_sparse_loss(student, kept, target).total
        ),
        "training_loss": lambda: clear(
            lambda: gkd.training_loss(student, teacher, target, group_size=size).total
        ),
        "copy": lambda: bytes_of.copy_(student.detach()),
    }
    timer = Timer("cpu")
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            found[name].append(timer(call))
    return {name: values[rounds // 10 :] for name, values in found.items()}  # less the warm-up


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, help="a CSV; printed alone where it is not given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    for rows, classes in SHAPES:
        for distribution in ("flat", "peaked"):
            for size in SIZES:
                dtype = getattr(torch, options.dtype)
                found = times(rows, classes, size, dtype, distribution, options.rounds)
                line = {
                    **describe("cpu"),
                    "load": round(load(), 2),
                    "rows": rows,
                    "classes": classes,
                    "dtype": options.dtype,
                    "distribution": distribution,
                    "group_size": size,
                }
                for name, values in found.items():
                    line[f"{name}_ms"] = f"{quantiles(values)[1] * 1e3:.4f}"
                for prefix in ("", "training_"):
                    pairs = zip(found[f"{prefix}sparse_loss"], found[f"{prefix}loss"], strict=True)
                    p20, median, p80 = quantiles([a / b for a, b in pairs])
                    line[f"{prefix}ratio_p20"] = f"{p20:.3f}"
                    line[f"{prefix}ratio_median"] = f"{median:.3f}"
                    line[f"{prefix}ratio_p80"] = f"{p80:.3f}"
                lines.append(line)
                print(
                    f"{rows} x {classes} {distribution}, groups of {size}: "
                    f"{line['ratio_median']} [{line['ratio_p20']}, {line['ratio_p80']}] of gkd.loss"
                    f" (at most {LEAST}); with cross-entropy {line['training_ratio_median']}; "
                    f"sparse {line['sparse_loss_ms']} ms, copy {line['copy_ms']} ms",
                    flush=True,
                )
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
