"""gkd against itself: ``python -m benchmarks.pairs``.

Two questions whose answers are ratios near 1, which separate runs cannot settle: whether 16-bit
logits are slower than float32 ones, and how the time per class grows with the classes. Both sides
of a pair take turns, and each round gives a ratio; forward and backward of the mean loss.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

import gkd
from benchmarks import table
from benchmarks.machine import describe, load
from benchmarks.measure import Timer, logits, quantiles, run_once

#: (rows, classes, dtype): a base and what is compared with it, at about as many logits. The growth
#: is from 85,742 classes, the paper's data set.
BASES = ((16, 85_742, "float32"), (4, 360_232, "float32"), (24, 85_742, "float32"))
PAIRS = (
    (BASES[0], (16, 85_742, "bfloat16")),
    (BASES[0], (16, 85_742, "float16")),
    (BASES[1], (4, 360_232, "bfloat16")),
    (BASES[1], (4, 360_232, "float16")),
    (BASES[2], (1, 2_059_906, "float32")),
    (BASES[2], (2, 2_059_906, "float32")),
)


def ratios(base, other, distribution: str, rounds: int, device: str):  # type: ignore[no-untyped-def]
    """Time per class of the base in ns, and the other's over it, by round."""
    timer = Timer(device)
    sides = []
    for rows, classes, dtype in (base, other):
        pair = logits(rows, classes, getattr(torch, dtype), distribution, device)
        sides.append((rows * classes, *pair))
    found = []
    for _ in range(rounds):
        times = [
            timer(lambda s=s, t=t: run_once(gkd.loss, s, t, "forward_backward")) / size * 1e9
            for size, s, t in sides
        ]
        found.append(times)
    found = found[len(found) // 10 :]  # warm-up
    return [a for a, _ in found], [b / a for a, b in found]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pairs_cpu.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    for base, other in PAIRS:
        for distribution in ("flat", "peaked"):
            times, ratio = ratios(base, other, distribution, options.rounds, options.device)
            p20, median, p80 = quantiles(ratio)
            name = "{}x{} {}"
            line = {
                **describe(options.device),
                "device": options.device,
                "load": round(load(), 2),
                "distribution": distribution,
                "base": name.format(*base),
                "other": name.format(*other),
                "base_ns_per_class": f"{quantiles(times)[1]:.4f}",
                "ratio_p20": f"{p20:.3f}",
                "ratio_median": f"{median:.3f}",
                "ratio_p80": f"{p80:.3f}",
            }
            lines.append(line)
            print(
                f"{line['other']} over {line['base']}, {distribution}: "
                f"{median:.3f} [{p20:.3f}, {p80:.3f}]",
                flush=True,
            )
    table.write(options.output, lines)


if __name__ == "__main__":
    main()
