"""Bounds for heads split over ranks: ``python -m benchmarks.scaling_model``.

Arithmetic on published figures, for hardware that this code has not run on: bounds, no measurement.
docs/performance.md has the table of memory and local passes. The collectives follow NCCL's own
model (NVIDIA/nccl, src/graph/tuning.cc, commit 01afd20) and nccl-tests' doc/PERFORMANCE.md. Only
``cpu`` starts from measured costs.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from pathlib import Path

# csrc/math/shard.h and math/search.h: bytes of one row's message.
BINS = 2048
EXTREMES, COUNTS, AMOUNTS, MOMENTS, KL = 2 * 8, BINS * 4, (BINS + 2) * 8, 13 * 8, 2 * 8
SPREADS = {"16-bit": 2, "float32": 3, "float64": 6}
SIZE = {"16-bit": 2, "float32": 4, "float64": 8}

RANKS, CLASSES, ROWS = (8, 64, 1024), (10**6, 10**7, 10**8, 10**9), (128, 1024)
NODE = 8  #: GPUs that NVSwitch joins
#: Bytes per second of one GPU, each way.
NVLINK, INFINIBAND, MEMORY = 450e9, 50e9, 3.35e12
GPU_BYTES = 80e9
EMBEDDING = 512

MICRO = 1e-6


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's, in seconds and as a share of the bandwidth."""

    share: float
    base: dict[str, float]
    nvlink: dict[str, float]
    network: dict[str, float]


def _latency(tree: float, ring: float) -> dict[str, float]:
    return {"tree": tree * MICRO, "ring": ring * MICRO}


LL = Protocol(0.25, _latency(4.4, 3.6), _latency(0.52, 0.47), _latency(5.0, 2.7))
LL128 = Protocol(0.92, _latency(4.4, 10.0), _latency(1.2, 1.9), _latency(8.5, 4.0))


def bandwidth(ranks: int) -> float:
    """Of a GPU in a ring or tree. Across nodes every GPU's own adapter carries an eighth."""
    return NVLINK if ranks <= NODE else min(NVLINK, NODE * INFINIBAND)


def all_reduce(size: float, ranks: int) -> float:
    """Seconds, by the best of ring and tree, LL and LL128; `size` in bytes."""
    nodes = max(1, ranks // NODE)
    times = []
    for p in (LL, LL128):
        rate = bandwidth(ranks) * p.share
        inside, across = 2 * (ranks - nodes), 2 * (nodes - 1)
        hops = inside * p.nvlink["ring"] + across * p.network["ring"]
        times.append(p.base["ring"] + hops + 2 * (ranks - 1) / ranks * size / rate)
        hops = 2 * (NODE - 1) * p.nvlink["tree"] + 2 * math.log2(nodes) * p.network["tree"]
        times.append(p.base["tree"] + hops + 2 * size / rate)
    return min(times)


def all_gather(size: float, ranks: int) -> float:
    """Seconds, by a ring; `size` is one rank's part in bytes."""
    nodes = max(1, ranks // NODE)
    return min(
        p.base["ring"]
        + (ranks - nodes) * p.nvlink["ring"]
        + (nodes - 1) * p.network["ring"]
        + (ranks - 1) * size / (bandwidth(ranks) * p.share)
        for p in (LL, LL128)
    )


def reduces(rows: int, dtype: str, ranks: int) -> float:
    """Seconds of a call's all-reduces."""
    return (
        all_reduce(rows * EXTREMES, ranks)
        + all_reduce(rows * COUNTS, ranks)
        + SPREADS[dtype] * all_reduce(rows * AMOUNTS, ranks)
    )


def gathers(rows: int, ranks: int) -> float:
    """Seconds of a call's all-gathers."""
    return all_gather(rows * MOMENTS, ranks) + all_gather(rows * KL, ranks)


def sweep(rows: int, classes: float, dtype: str) -> float:
    """Seconds to move a rank's logits through memory as often as the CUDA stages do.

    Ranking logits for extremes, counts and each spread; both for the moments; both and the
    gradient at the end.
    """
    return rows * classes * SIZE[dtype] * (1 + 1 + SPREADS[dtype] + 2 + 3) / MEMORY


def fits(rows: int, classes: float, dtype: str) -> float:
    """Bytes: student's head with gradient and momentum, teacher's head, three logit tensors."""
    return classes * (4 * EMBEDDING * 4 + 3 * rows * SIZE[dtype])


def number(x: float) -> str:
    return f"10^{round(math.log10(x))}"


def wire_table() -> list[str]:
    lines = [
        "| logits | collectives | a rank sends, B per row | it receives in gathers, B per row |",
        "| --- | ---: | ---: | ---: |",
    ]
    for dtype, spreads in SPREADS.items():
        sent = EXTREMES + COUNTS + spreads * AMOUNTS + MOMENTS + KL
        lines.append(f"| {dtype} | {4 + spreads} | {sent:,} | {MOMENTS + KL} x W |")
    return lines


def communication_table() -> list[str]:
    lines = [
        "| ranks | rows | all-reduces, ms | all-gathers, ms | together, ms |"
        " features' gradient, ms |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for ranks in RANKS:
        for rows in ROWS:
            r, g = reduces(rows, "float32", ranks), gathers(rows, ranks)
            f = all_reduce(rows * EMBEDDING * 4, ranks)
            lines.append(
                f"| {ranks:,} | {rows:,} | {r * 1e3:.2f} | {g * 1e3:.2f} | {(r + g) * 1e3:.2f} "
                f"| {f * 1e3:.2f} |"
            )
    return lines


def gpu_table() -> list[str]:
    lines = [
        "| C | ranks | rows | local sweeps, ms | collectives, ms | memory, GB | |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for classes in CLASSES:
        for ranks in RANKS:
            for rows in ROWS:
                local = sweep(rows, classes / ranks, "float32")
                talk = reduces(rows, "float32", ranks) + gathers(rows, ranks)
                memory = fits(rows, classes / ranks, "float32")
                note = "" if memory < GPU_BYTES else "does not fit"
                lines.append(
                    f"| {number(classes)} | {ranks:,} | {rows:,} | {local * 1e3:.2f} "
                    f"| {talk * 1e3:.2f} | {memory / 1e9:.1f} | {note} |"
                )
    return lines


def cpu_table(path: Path) -> list[str]:
    """Costs of the largest measured row, carried over to a rank's share of 10^9 classes."""
    with path.open() as file:
        lines = [x for x in csv.DictReader(file) if x["dtype"] == "float32"]
    largest = max(int(x["classes"]) for x in lines)
    cost = {
        x["name"]: float(x["ns_per_class"])
        for x in lines
        if x["kind"] == "stage" and int(x["classes"]) == largest
    }
    # Per row and not per class.
    cost = {k: v for k, v in cost.items() if k not in ("narrow", "loss")}
    total = sum(v * (2 if k == "later amounts" else 1) for k, v in cost.items())
    out = ["| stage | ns per class |", "| --- | ---: |"]
    out += [f"| {k}{' (twice)' * (k == 'later amounts')} | {v:.2f} |" for k, v in cost.items()]
    out += [f"| together | {total:.1f} |", "", "| C | ranks | s for 128 rows |"]
    out += ["| ---: | ---: | ---: |"]
    for classes in CLASSES:
        for ranks in RANKS:
            seconds = 128 * classes / ranks * total * 1e-9
            out.append(f"| {number(classes)} | {ranks:,} | {seconds:,.3g} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_model", description=__doc__)
    parser.add_argument("--cpu", type=Path, default=Path("benchmarks/results/sharded_cpu.csv"))
    options = parser.parse_args()
    tables = (wire_table(), communication_table(), gpu_table(), cpu_table(options.cpu))
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
