"""Draws speed, memory and growth: ``python -m benchmarks.figures CSV [--memory CSV]``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Order and colour of each contender, the same in every figure.
LOOKS = {
    "gkd": ("gkd", "#0b6e4f"),
    "user_eager": ("the usual code, eager", "#c0392b"),
    "user_compiled": ("the usual code, torch.compile", "#e59866"),
    "kd_eager": ("plain KD, eager", "#2c5f8a"),
    "kd_compiled": ("plain KD, torch.compile", "#85b2d6"),
    "liger_kl_div": ("liger-kernel kl_div", "#7d3c98"),
    "liger_jsd": ("liger-kernel jsd", "#bb8fce"),
    "copy": ("copy of the same bytes", "#7f8c8d"),
}
STAGE = "forward_backward"


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def pick(lines: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [x for x in lines if all(x[k] == v for k, v in wanted.items())]


def footer(figure: plt.Figure, lines: list[dict[str, str]], extra: str) -> None:
    one = lines[0]
    where = f"{one['machine']}, torch {one['torch']}"
    if one["device"] == "cpu":
        where += f", {one['threads']} threads"
    figure.text(0.01, 0.012, f"{where}. {extra}", fontsize=7.5, color="#555555")


def shapes(lines: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted({(x["rows"], x["classes"]) for x in lines}, key=lambda s: int(s[1]))


def label(shape: tuple[str, str]) -> str:
    return f"{int(shape[0]):,} x\n{int(shape[1]):,}"


class Quantity(NamedTuple):
    """What a panel of bars shows of a line of the CSV."""

    axis: str
    value: Callable[[dict[str, str]], float]
    spread: Callable[[dict[str, str]], tuple[float, float]]


TIME = Quantity(
    "ns per class",
    lambda x: float(x["ns_per_class_median"]),
    lambda x: (float(x["ns_per_class_p20"]), float(x["ns_per_class_p80"])),
)


def bars(axes: plt.Axes, lines: list[dict[str, str]], what: Quantity, title: str) -> None:
    """One group of bars per shape, one bar per contender, its value written on top."""
    names = [n for n in LOOKS if any(x["contender"] == n for x in lines)]
    places = shapes(lines)
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        for j, shape in enumerate(places):
            found = pick(lines, contender=name, rows=shape[0], classes=shape[1])
            if not found:
                continue
            x, y = j + (i - (len(names) - 1) / 2) * width, what.value(found[0])
            axes.bar(
                x, y, width * 0.92, color=LOOKS[name][1], label=LOOKS[name][0] if j == 0 else None
            )
            low, high = what.spread(found[0])
            axes.plot([x, x], [low, high], color="#333333", linewidth=0.8)
            text = f"{y:.1f}" if y < 10 else f"{y:.0f}"
            axes.text(x, max(y, high) * 1.06, text, ha="center", fontsize=6.5)
    axes.set_xticks(range(len(places)), [label(s) for s in places], fontsize=8)
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(what.axis, fontsize=8)


def grid_of(lines: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted(
        {(x["dtype"], x["distribution"]) for x in lines}, key=lambda p: (p[0] != "float32", p)
    )


def legend(figure: plt.Figure, axes: plt.Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = dict(zip(labels, handles, strict=True))
    figure.legend(
        order.values(),
        order.keys(),
        loc="upper center",
        ncols=len(order),
        fontsize=8,
        frameon=False,
        bbox_to_anchor=(0.5, 0.955),
    )


def speed(lines: list[dict[str, str]], output: Path) -> None:
    lines = [x for x in pick(lines, stage=STAGE) if x["contender"] in LOOKS]
    panels = grid_of(lines)
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(12, 3.6 * rows + 0.9), squeeze=False)
    for ax, (dtype, distribution) in zip(axes.flat, panels, strict=False):
        found = pick(lines, dtype=dtype, distribution=distribution)
        bars(ax, found, TIME, f"{dtype}, {distribution} logits")
    figure.suptitle("Forward and backward: time (lower is better)", fontsize=12, y=0.985)
    legend(figure, axes.flat[0])
    footer(figure, lines, "Bars: median; lines: p20 to p80. Copy: reads two tensors, writes one.")
    figure.tight_layout(rect=(0, 0.03, 1, 0.94))
    figure.savefig(output / f"speed_{lines[0]['device']}.png", dpi=150)


def tensors(line: dict[str, str]) -> float:
    """Peak memory in [B, C] tensors."""
    return int(line["peak_bytes"]) / int(line["bytes_of_one_tensor"])


MEMORY = Quantity(
    "peak over the inputs, in [B, C] tensors", tensors, lambda x: (tensors(x), tensors(x))
)


def memory(lines: list[dict[str, str]], output: Path) -> None:
    lines = [
        x for x in pick(lines, stage=STAGE) if x["contender"] in LOOKS and int(x["peak_bytes"]) > 0
    ]
    if not lines:
        return
    dtypes = sorted({x["dtype"] for x in lines}, reverse=True)
    distribution = grid_of(lines)[0][1]
    figure, axes = plt.subplots(1, len(dtypes), figsize=(12, 4.5), squeeze=False)
    for ax, dtype in zip(axes.flat, dtypes, strict=True):
        bars(ax, pick(lines, dtype=dtype, distribution=distribution), MEMORY, dtype)
        ax.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
    figure.suptitle("Forward and backward: memory (1: the gradient alone)", fontsize=12, y=0.985)
    legend(figure, axes.flat[0])
    footer(figure, lines, "Peak of the process over its inputs, in a process of its own.")
    figure.tight_layout(rect=(0, 0.03, 1, 0.92))
    figure.savefig(output / f"memory_{lines[0]['device']}.png", dpi=150)


def growth(lines: list[dict[str, str]], output: Path) -> None:
    lines = [x for x in pick(lines, stage=STAGE, dtype="float32") if x["contender"] in LOOKS]
    kinds = sorted({x["distribution"] for x in lines})
    figure, axes = plt.subplots(1, len(kinds), figsize=(12, 4.5), squeeze=False, sharey=True)
    for ax, kind in zip(axes.flat, kinds, strict=True):
        for name, (text, colour) in LOOKS.items():
            points = sorted(
                pick(lines, contender=name, distribution=kind), key=lambda x: int(x["classes"])
            )
            if not points:
                continue
            x = [int(p["classes"]) for p in points]
            ax.plot(
                x,
                [float(p["ns_per_class_median"]) for p in points],
                "o-",
                color=colour,
                label=text,
                markersize=4,
                linewidth=2.2 if name == "gkd" else 1.3,
            )
            ax.fill_between(
                x,
                [float(p["ns_per_class_p20"]) for p in points],
                [float(p["ns_per_class_p80"]) for p in points],
                color=colour,
                alpha=0.15,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("classes", fontsize=8)
        ax.set_ylabel("ns per class", fontsize=8)
        ax.set_title(f"{kind} logits", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e5e5e5", linewidth=0.6)
    figure.suptitle(
        "Forward and backward, float32: growth with the number of classes", fontsize=12, y=0.985
    )
    legend(figure, axes.flat[0])
    footer(figure, lines, "Lines: median; bands: p20 to p80.")
    figure.tight_layout(rect=(0, 0.03, 1, 0.92))
    figure.savefig(output / f"growth_{lines[0]['device']}.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--memory", type=Path, help="a CSV of its own for the peaks")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    lines = read(options.csv)
    speed(lines, options.output)
    growth(lines, options.output)
    memory(read(options.memory) if options.memory else lines, options.output)


if __name__ == "__main__":
    main()
