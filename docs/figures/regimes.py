"""Draws regimes.png, which launch strategy takes which row: ``python docs/figures/regimes.py``.

The limits are from benchmarks/results/fused_slices.csv, which benchmarks/cpp/slices.cu prints.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from command import run
from matplotlib.patches import FancyArrowPatch, Rectangle

LIMITS = Path("benchmarks/results/fused_slices.csv")
MULTI = "multi-kernel"
COLOURS = {"block": "#0b6e4f", "cluster": "#58a182", "grid": "#85b2d6", MULTI: "#c9ced1"}
CHIP, MEMORY, INK = "#eef3f1", "#f5efe6", "#333333"
HEADS = {"MS1MV2": 85_742, "Glint360K": 360_232, "WebFace42M": 2_059_906}
LONGEST = 20_000_000


def box(ax: plt.Axes, x: float, y: float, w: float, h: float, colour: str) -> None:
    ax.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor=INK, linewidth=0.8))


def scheme(ax: plt.Axes, kind: str, text: str) -> None:
    """Where a row is stored, and how its blocks communicate."""
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.axis("off")
    ax.set_title(kind, fontsize=10, weight="bold", color=INK, loc="left")
    ax.text(0, -0.4, text, fontsize=8, va="top")
    blocks = {"block": 1, "cluster": 4, "grid": 4, MULTI: 3}[kind]
    if kind == MULTI:
        for k, name in enumerate(("cut", "moments", "gradient")):
            middle = 1.65 + 3.2 * k
            box(ax, middle - 1.45, 5.2, 2.9, 3.2, COLOURS[kind])
            ax.text(middle, 6.8, name, ha="center", va="center", fontsize=6.8)
            for x in (middle - 0.5, middle + 0.5):
                arrow(ax, (x, 3.6), (x, 5.1))
        box(ax, 0.2, 1.6, 9.3, 2.0, MEMORY)
        ax.text(4.85, 2.6, "rows in L2, in chunks", ha="center", va="center", fontsize=8)
        return
    gap = 0.8 if kind == "cluster" else 0.4
    width = 4.0 if kind == "block" else (9.3 - gap * (blocks - 1)) / blocks
    for k in range(blocks):
        x = 0.2 + k * (width + gap)
        box(ax, x, 5.0, width, 3.6, CHIP)
        box(ax, x + 0.2, 5.4, width - 0.4, 1.4, COLOURS[kind])
        if kind == "cluster" and k > 0:
            arrow(ax, (x - gap, 7.7), (x, 7.7), "<->")
        if kind == "grid":
            arrow(ax, (x + width / 2, 3.7), (x + width / 2, 5.0), "<->")
    if kind == "grid":
        box(ax, 0.2, 1.6, 9.3, 2.0, MEMORY)
        ax.text(4.85, 2.6, "scratch memory, barrier", ha="center", va="center", fontsize=8)
    if kind == "block":
        ax.text(0.2 + width / 2, 7.7, "one block", ha="center", va="center", fontsize=8)
        ax.text(width + 0.9, 6.1, "row in shared\nmemory", va="center", fontsize=8)


def arrow(ax: plt.Axes, start, end, style: str = "-|>") -> None:  # type: ignore[no-untyped-def]
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=8, color=INK, linewidth=0.9)
    )


def limits() -> dict[str, dict[str, int]]:
    """Longest row by launch strategy, for each dtype, on a card with clusters."""
    with LIMITS.open() as file:
        lines = [x for x in csv.DictReader(file) if x["capability"].startswith("9.0")]
    found: dict[str, dict[str, int]] = {}
    for line in lines:  # of a strategy, streamed rows come last: they are the longest
        strategy = line["regime"].removeprefix("streamed ")
        # Every card with clusters grants 8 blocks; 16 it may refuse.
        if strategy == "cluster" and line["blocks"] != "8":
            continue
        found.setdefault(line["dtype"], {})[strategy] = int(line["classes"])
    assert found["float16"] == found["bfloat16"]
    return {
        "16-bit": found["float16"],
        "float32": found["float32"],
        "float64": found["float64"],
    }


def bars(ax: plt.Axes) -> None:
    for y, (dtype, longest) in enumerate(limits().items()):
        start = 1000.0
        for kind in COLOURS:
            end = float(longest.get(kind, LONGEST))
            ax.barh(y, end - start, left=start, color=COLOURS[kind], height=0.62)
            if kind != MULTI:
                ink = "white" if kind == "block" else INK
                text = ax.text(end * 0.93, y, f"{end:,.0f}", ha="right", va="center", color=ink)
                text.set_bbox({"facecolor": COLOURS[kind], "edgecolor": "none", "pad": 1})
            start = end
        ax.text(900, y, dtype, ha="right", va="center")
    for name, classes in HEADS.items():
        ax.axvline(classes, color=INK, linewidth=0.8, linestyle=":")
        ax.text(classes, -0.62, f"{name}\n{classes:,}", ha="center", fontsize=7.5)
    ax.set(xscale="log", xlim=(1000, LONGEST), ylim=(-0.5, 2.5), xlabel="classes in a row")
    ax.invert_yaxis()
    ax.set_xticks([1e3, 1e4, 1e5, 1e6, 1e7], ["1,000", "10,000", "100,000", "10^6", "10^7"])
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    ax.legend(
        handles, COLOURS, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22)
    )


def draw(output: Path) -> None:
    figure = plt.figure(figsize=(8.0, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 1.25], hspace=0.12)
    texts = {
        "block": "no communication",
        "cluster": "2 to 16 blocks read each\nother's shared memory",
        "grid": "up to 128 blocks, one or two\nper multiprocessor",
        MULTI: "several kernels; any row,\nany device",
    }
    for k, (kind, text) in enumerate(texts.items()):
        scheme(figure.add_subplot(grid[0, k]), kind, text)
    bars(figure.add_subplot(grid[1, :]))
    figure.savefig(output / "regimes.png", dpi=170)
    plt.close(figure)


if __name__ == "__main__":
    run(draw, __doc__)
