"""Draws speed, growth and memory: ``python -m benchmarks.figures``, for all three of the README.

With a CSV that ``python -m benchmarks`` wrote, the same figures of that run.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator

RESULTS = Path("benchmarks/results")
#: What the committed figures are drawn from.
SPEED = RESULTS / "cpu_amd_epyc_2_cores_compiled.csv"
GROWTH = RESULTS / "cpu_amd_epyc_2_cores.csv"
MEMORY = RESULTS / "cpu_amd_epyc_2_cores_memory.csv"

#: Order and colour of each contender, the same in every figure.
LOOKS = {
    "gkd": ("gkd", "#0b6e4f"),
    "user_eager": ("GKD as usually written", "#c0392b"),
    "user_compiled": ("the same, torch.compile", "#e59866"),
    "kd_eager": ("plain KD", "#2c5f8a"),
    "kd_compiled": ("plain KD, torch.compile", "#85b2d6"),
    "liger_kl_div": ("liger-kernel kl_div", "#7d3c98"),
    "liger_jsd": ("liger-kernel jsd", "#bb8fce"),
    "copy": ("copy of the same bytes", "#7f8c8d"),
}
STAGE = "forward_backward"
WIDTH = 8.0  #: inches: at the width of a README, text of 9 points reads as text does

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9.5,
        "grid.color": "#e5e5e5",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "savefig.dpi": 170,
    }
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def pick(lines: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [x for x in lines if all(x[k] == v for k, v in wanted.items())]


def timed(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    return [x for x in pick(lines, stage=STAGE) if x["contender"] in LOOKS]


def shapes(lines: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted({(x["rows"], x["classes"]) for x in lines}, key=lambda s: int(s[1]))


def names_in(lines: list[dict[str, str]]) -> list[str]:
    return [name for name in LOOKS if any(x["contender"] == name for x in lines)]


def text_of(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def finish(
    figure: plt.Figure, lines: list[dict[str, str]], title: str, extra: str, path: Path
) -> None:
    """Title, where and how it was measured, file."""
    one = lines[0]
    where = f"{one['machine']}, torch {one['torch']}"
    if one["device"] == "cpu":
        where += f", {one['threads']} threads"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.supxlabel(f"{where}. {extra}", fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path)
    plt.close(figure)


def speed(lines: list[dict[str, str]], output: Path) -> None:
    """A dot for each contender and shape, one panel per dtype and distribution."""
    lines = timed(lines)
    names, places = names_in(lines), shapes(lines)
    dtypes = sorted({x["dtype"] for x in lines}, key=lambda d: (d != "float32", d))
    kinds = sorted({x["distribution"] for x in lines})
    height = len(dtypes) * (0.24 * len(names) * max(1.0, len(places) / 2) + 0.55) + 0.9
    figure, axes = plt.subplots(
        len(dtypes),
        len(kinds),
        figsize=(WIDTH, height),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    shades = [1.0, 0.45, 0.75, 0.3, 0.6, 0.9, 0.5, 0.8]
    for i, dtype in enumerate(dtypes):
        for j, kind in enumerate(kinds):
            ax = axes[i, j]
            found = pick(lines, dtype=dtype, distribution=kind)
            for y, name in enumerate(names):
                for k, (rows, classes) in enumerate(places):
                    one = pick(found, contender=name, rows=rows, classes=classes)
                    if not one:
                        continue
                    low, x, high = (
                        float(one[0][f"ns_per_class_{q}"]) for q in ("p20", "median", "p80")
                    )
                    at = y + (k - (len(places) - 1) / 2) * 0.8 / len(places)
                    colour = LOOKS[name][1]
                    ax.plot([low, high], [at, at], color=colour, linewidth=1.2)
                    ax.plot(x, at, "o", markersize=5, color=colour, alpha=shades[k])
                    ax.text(max(x, high) * 1.14, at, text_of(x), va="center", fontsize=7.5)
            ax.set_title(f"{dtype}, {kind} logits", loc="left")
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.grid(axis="x")
            ax.set_yticks(range(len(names)), [LOOKS[n][0] for n in names])
            ax.tick_params(axis="y", length=0)
    for ax in axes[-1]:
        ax.set_xlabel("ns per class, lower is better")
    axes[0, 0].invert_yaxis()
    low, high = axes[0, 0].get_xlim()
    axes[0, 0].set_xlim(low, high * 1.6)
    order = ", then ".join(f"{int(r):,} x {int(c):,}" for r, c in places)
    extra = f"Dots: median, from top: {order}.\nLines: p20 to p80. Copy: reads two, writes one."
    path = output / f"speed_{lines[0]['device']}.png"
    finish(figure, lines, "Forward and backward: time", extra, path)


def tensors(line: dict[str, str]) -> float:
    """Peak memory in [B, C] tensors."""
    return int(line["peak_bytes"]) / int(line["bytes_of_one_tensor"])


def memory(lines: list[dict[str, str]], output: Path) -> None:
    lines = [x for x in timed(lines) if int(x["peak_bytes"]) > 0]
    if not lines:
        return
    dtypes = sorted({x["dtype"] for x in lines}, reverse=True)
    lines = pick(lines, distribution=sorted({x["distribution"] for x in lines})[0])
    names, places = names_in(lines), shapes(lines)
    height = 0.3 * len(names) * len(places) + 1.5
    figure, axes = plt.subplots(
        1,
        len(dtypes),
        figsize=(WIDTH, height),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for ax, dtype in zip(axes.flat, dtypes, strict=True):
        for j, (rows, classes) in enumerate(places):
            for i, name in enumerate(names):
                one = pick(lines, dtype=dtype, contender=name, rows=rows, classes=classes)
                if not one:
                    continue
                at = j * (len(names) + 0.8) + i
                x = tensors(one[0])
                ax.barh(at, x, 0.9, color=LOOKS[name][1], label=LOOKS[name][0] if not j else None)
                ax.text(x + 0.2, at, text_of(x), va="center", fontsize=8)
        middle = (len(names) - 1) / 2
        ax.set_yticks(
            [j * (len(names) + 0.8) + middle for j in range(len(places))],
            [f"{int(r):,} x\n{int(c):,}" for r, c in places],
        )
        ax.tick_params(axis="y", length=0)
        ax.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
        ax.set_title(dtype, loc="left")
        ax.set_xlabel("[B, C] tensors, lower is better")
        ax.grid(axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, 1.08 * max(tensors(x) for x in lines))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    finish(
        figure,
        lines,
        "Forward and backward: peak memory",
        "Each in a process of its own, over its inputs.\nDotted line: the gradient alone.",
        output / f"memory_{lines[0]['device']}.png",
    )


def growth(lines: list[dict[str, str]], output: Path) -> None:
    lines = pick(timed(lines), dtype="float32")
    kinds = sorted({x["distribution"] for x in lines})
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(WIDTH, 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    for ax, kind in zip(axes.flat, kinds, strict=True):
        for name in names_in(lines):
            text, colour = LOOKS[name]
            points = sorted(
                pick(lines, contender=name, distribution=kind), key=lambda x: int(x["classes"])
            )
            x = [int(p["classes"]) for p in points]
            low, y, high = (
                [float(p[f"ns_per_class_{q}"]) for p in points] for q in ("p20", "median", "p80")
            )
            bold = 2.2 if name == "gkd" else 1.3
            ax.plot(x, y, "o-", color=colour, label=text, markersize=4, linewidth=bold)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(x, [f"{c:,}" for c in x], fontsize=8)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.set_xlabel("classes of a row")
        ax.set_title(f"{kind} logits", loc="left")
        ax.grid()
    axes[0, 0].set_ylabel("ns per class")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    finish(
        figure,
        lines,
        "Growth with C, float32",
        "Forward and backward.\nLines: median; bands: p20 to p80.",
        output / f"growth_{lines[0]['device']}.png",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("csv", type=Path, nargs="?", help="one run's, instead of the committed")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    speed(read(options.csv or SPEED), options.output)
    growth(read(options.csv or GROWTH), options.output)
    memory(read(options.csv or MEMORY), options.output)


if __name__ == "__main__":
    main()
