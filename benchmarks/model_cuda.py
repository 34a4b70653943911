"""The time of a call over that of a copy on several cards: arithmetic, not measurements.

    python -m benchmarks.model_cuda          # the table of docs/performance.md

From the instructions per class in the machine code (`results/machine_code.csv`), the cycles of a
row's serial part (`csrc/cuda/tuning.h`), and the cards' published figures. Each multiprocessor
works on one row's segment, or on two at a time where two fit its shared memory. A segment takes

    the longest of   its traffic, at the multiprocessor's share of the memory's speed,
                     what it reads from the L2 cache: of a streamed row one input three times,
                     its instructions, at the rate of four schedulers,
                     all that one block does, one after the other, by the segments at a time

A pass that weighs all classes is added for the float32 rows that need it (docs/performance.md).

What is left out: other effects of caches, the tail of uneven waves beyond whole ones, and power
limits. The cycles of the serial part and the rates below are uncertain by a third.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from benchmarks.budget import STREAMED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Instructions that four schedulers issue for 32 lanes, per cycle and class, and what of that rate
#: two blocks reach together and one alone (modelled for sm_90).
LANES, TOGETHER, ALONE = 128, 0.92, 0.6
#: Of the published bandwidth, what a copy reaches: 3.0 of 3.35 TB/s and 4.3 of 4.8 in reports.
COPY_SHARE = 0.9
#: Cycles until the first byte of a segment arrives.
LATENCY = 1200
#: Bytes a cycle that a multiprocessor gets from the L2 cache.
L2_RATE = 35
#: Seconds of a copy's launch, of a call's three, and of those where two start while the kernel
#: before them runs: from compute capability 9.0 on.
LAUNCH, LAUNCHES, EARLY_LAUNCHES = 2e-6, 5e-6, 3e-6
#: Of a flat row: the default threshold, and the standard deviation of normal logits over T.
THRESHOLD, SPREAD = 0.93, 3 / 4
#: A grid has at most so many blocks per row, and a cluster.
MOST_GRID, MOST_CLUSTER = 128, 16


@dataclass(frozen=True)
class Card:
    """Multiprocessors, boost clock in GHz and bandwidth in TB/s of NVIDIA's data sheets; shared
    memory of a multiprocessor in KiB of the CUDA C++ Programming Guide."""

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    shared: int
    clusters: bool


CARDS = (
    Card("H100", 132, 1.755, 3.35, 228, True),
    Card("H200", 132, 1.755, 4.8, 228, True),
    Card("A100", 108, 1.41, 2.039, 164, False),
    Card("L4", 58, 2.04, 0.3, 100, False),
    Card("B200", 148, 1.9, 8.0, 228, True),  # its clock is an assumption
)
SHAPES = (
    ("float32", 783, 85_742),
    ("float32", 6_711, 10_000),
    ("float32", 187, 360_232),
    ("float32", 33, 2_059_906),
    ("bfloat16", 4_096, 131_072),
)
#: What the project aims at on an H100, by shape and kind of row.
GOALS = {
    (*SHAPES[0], "flat"): 1.25,
    (*SHAPES[1], "flat"): 1.35,
    (*SHAPES[2], "flat"): 1.3,
    (*SHAPES[3], "flat"): 1.8,
    (*SHAPES[4], "flat"): 1.7,
    (*SHAPES[4], "small"): 1.2,
}


def instructions() -> dict[tuple[str, str, str], float]:
    """Per class, by strategy, dtype and kind of row, for sm_90; of the kind "vector" those of the
    pass that weighs."""
    with (RESULTS / "machine_code.csv").open() as file:
        return {
            (line["strategy"], line["dtype"], line["path"]): float(line["instructions"])
            for line in csv.DictReader(file)
            if line["architecture"] == "90"
            and (
                line["loop"] == "total"
                or (line["loop"], line["path"]) == ("weigh by mass", "vector")
            )
        }


def constant(pattern: str) -> float:
    match = re.search(pattern, (ROOT / "csrc" / "cuda" / "tuning.h").read_text())
    assert match, f"tuning.h lacks {pattern}"
    return float(match[1])


def weighed(dtype: str, classes: int, segment: int, row: str) -> float:
    """The share of rows whose classes are all weighed, since the error of the float sums leaves the
    cut open: twice its bound (`sum_error` in `csrc/cuda/fused/find_cut.cuh`), as a share of the
    row's mass, over the share of the class at the cut. Of longer rows all are."""
    if dtype != "float32":
        return 0
    if classes > 2 ** constant(r"kMaxSummedClasses = std::int64_t\(1\) << (\d+)"):
        return 1
    if row != "flat":
        return 0
    error = 1.01 * 2**-24 * (10 + segment // 8192 + 1)
    slack = error * 2 * THRESHOLD * (1 - THRESHOLD)
    at_cut = SPREAD - NormalDist().inv_cdf(THRESHOLD)  # in standard deviations
    return min(1, 2 * slack * classes / math.exp(SPREAD * at_cut - SPREAD**2 / 2))


def serial_cycles() -> dict[str, float]:
    return {
        strategy: constant(rf"k{strategy.title()}RowCycles = (\d+)")
        for strategy in ("block", "cluster", "grid")
    }


def inputs(strategy: str) -> int:
    """Of which a block's shared memory holds segments."""
    return 1 if strategy.startswith(STREAMED) else 2


def class_bytes(strategy: str, element_bytes: int) -> float:
    """Shared memory of a class: its logits, and a bit."""
    return inputs(strategy) * element_bytes + 1 / 8


def fixed_bytes(strategy: str, dtype: str, element_bytes: int) -> float:
    """Shared memory of a block besides its segments."""
    with (RESULTS / "fused_slices.csv").open() as file:
        for line in csv.DictReader(file):
            if (line["dtype"], line["regime"], line["capability"][:3]) == (dtype, strategy, "9.0"):
                segment = int(line["classes"]) // int(line["blocks"])
                return int(line["shared_bytes"]) - class_bytes(strategy, element_bytes) * segment
    raise ValueError(f"no {strategy} {dtype} in fused_slices.csv")


def plans(card: Card) -> Iterator[tuple[str, int]]:
    """Strategies and blocks per row."""
    yield "block", 1
    for way in ("", STREAMED):
        if card.clusters:
            sizes = (2**k for k in range(1, int(math.log2(MOST_CLUSTER)) + 1))
            yield from ((f"{way}cluster", blocks) for blocks in sizes)
        yield from ((f"{way}grid", blocks) for blocks in range(2, MOST_GRID + 1))


@dataclass(frozen=True)
class Model:
    instructions: dict[tuple[str, str, str], float]
    serial: dict[str, float]

    def seconds(
        self,
        card: Card,
        dtype: str,
        rows: int,
        classes: int,
        row: str,
        plan: tuple[str, int],
        at_a_time: int,
    ) -> float:
        """Of a call; infinite where the segments do not fit."""
        strategy, blocks = plan
        element = 4 if dtype == "float32" else 2
        segment = -(-classes // blocks)
        shared = card.shared * 1024 // at_a_time - 1024
        held = inputs(strategy)
        needed = fixed_bytes(strategy, dtype, element) + class_bytes(strategy, element) * segment
        if needed > shared:
            return math.inf
        groups = card.multiprocessors * at_a_time // blocks
        if groups == 0:
            return math.inf
        each_class = self.instructions[strategy, dtype, row]
        weigh = self.instructions[strategy, dtype, "vector"]
        cycles = (each_class + weighed(dtype, classes, segment, row) * weigh) * segment / LANES
        used = min(groups, rows) * blocks  # blocks at work at a time
        busy = min(card.multiprocessors, used)
        rate = COPY_SHARE * card.bandwidth * 1e3 / card.clock / busy  # bytes a cycle
        traffic = 3 * element * segment / rate
        cached = (2 if held == 2 else 4) * element * segment / L2_RATE
        kind = strategy.removeprefix(STREAMED)
        alone = LATENCY + 2 / 3 * traffic + cycles / ALONE + self.serial[kind]
        share = used / busy  # segments at a time on a multiprocessor
        each = max(traffic, cached, cycles / TOGETHER, alone / share)
        waves = rows / min(groups, rows)
        waves = math.ceil(waves) if waves < 8 or kind == "grid" else waves
        total = waves * share * each + (alone - each if waves > 1 else 0)
        early = card.clusters and kind != "grid"
        return total / (card.clock * 1e9) + (EARLY_LAUNCHES if early else LAUNCHES)

    def ratio(self, card: Card, dtype: str, rows: int, classes: int, row: str) -> tuple[float, str]:
        """Of the fastest plan to a copy, and the plan."""
        element = 4 if dtype == "float32" else 2
        copy = 3 * element * rows * classes / (COPY_SHARE * card.bandwidth * 1e12) + LAUNCH
        ways = [
            (
                self.seconds(card, dtype, rows, classes, row, plan, k) / copy,
                f"{plan[0]} {plan[1]}, {k}",
            )
            for plan in plans(card)
            for k in (1, 2)
        ]
        # A grid serves what nothing else takes, or a cluster only with a multiprocessor per block.
        fused = min((way for way in ways if "grid" not in way[1]), default=(math.inf, ""))
        alone = fused[0] == math.inf or ("cluster" in fused[1] and fused[1].endswith("1"))
        return min(ways) if alone else fused


def main() -> None:
    model = Model(instructions(), serial_cycles())
    print("| rows | logits |", " | ".join(c.name for c in CARDS), "| goal on an H100 |")
    print("| --- | --- |", " | ".join("---:" for _ in range(len(CARDS) + 1)), "|")
    for dtype, rows, classes in SHAPES:
        for row in ("flat", "small"):
            found = [model.ratio(card, dtype, rows, classes, row) for card in CARDS]
            ratios = " | ".join(f"{r:.2f}" if r < math.inf else "-" for r, _ in found)
            goal = GOALS.get((dtype, rows, classes, row), "")
            print(f"| {dtype} {rows:,} x {classes:,} | {row} | {ratios} | {goal} |")


if __name__ == "__main__":
    main()
