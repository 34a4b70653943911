"""The study's figures, from its raw rows: every seed is a dot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from examples.glyphs.figures import COLOURS, SAVE

from . import plan
from .record import Row, where
from .report import COLUMNS, SCORE, reported, tries

SEEDS = ("o", "s", "^", "D", "v", "P")  # one mark for each split, to compare on the same one
TEACHER_COLOUR = "#444444"
COLOUR = {
    **{name: COLOURS[name] for name in ("ce", "kd", "gkd-student")},
    "gkd-teacher": COLOURS["gkd"],
    "dkd": "#cc79a7",
    "fixed": "#56b4e9",
    "adaptive": "#b8860b",
}


def save_all(rows: list[Row], out: Path) -> list[Path]:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    out.mkdir(parents=True, exist_ok=True)
    drawings = {"losses": losses, "sizes": sizes, "tuning": tuning, "groups": groups}
    paths = []
    for name, draw in drawings.items():
        path = out / f"glyphs_study_{name}.png"
        figure = draw(rows)
        figure.savefig(path, **SAVE)
        plt.close(figure)
        paths.append(path)
    return paths


def _dots(axis: Any, height: float, found: list[Row], column: str, colour: str) -> None:
    """Every seed's mark, offset so that none hides another, and a bar at the mean."""
    for row in found:
        mark, lift = SEEDS[row["seed"] % len(SEEDS)], 0.16 * (row["seed"] - 1)
        axis.plot(100 * row[column], height - lift, mark, color=colour, markersize=5, alpha=0.85)
    average = 100 * sum(row[column] for row in found) / len(found)
    axis.plot([average] * 2, [height - 0.32, height + 0.32], color=colour, linewidth=1.6)


def losses(rows: list[Row]) -> Any:
    """Verification and the mass outside the teacher's group: losses, below them the ablation."""
    ablation = [f"{kind}-{rank}" for rank in ("student", "teacher") for kind in plan.KINDS]
    parts = [list(plan.MAIN), [name for name in ablation if reported(rows, name)]]
    parts = [part for part in parts if part]
    columns = [
        (SCORE, "TAR at FAR 1e-2, %\nunseen characters"),
        ("top1", "top-1, %\nunseen faces of known characters"),
        ("tail_student", "student's mass outside the teacher's\ngroup, % (dashed: the teachers')"),
    ]
    figure, axes = plt.subplots(
        len(parts),
        3,
        figsize=(11, 0.3 * sum(map(len, parts)) + 0.6 + 0.5 * len(parts)),
        height_ratios=[len(part) for part in parts],
        sharey="row",  # each part has a scale of its own, or the ablation would squeeze the losses
        squeeze=False,
        layout="constrained",
    )
    for line, part in zip(axes, parts, strict=True):
        for axis, (column, _) in zip(line, columns, strict=True):
            for index, name in enumerate(part):
                _dots(axis, -index, reported(rows, name), column, COLOUR.get(name, "#555555"))
            axis.grid(axis="x", alpha=0.25)
        labels = [plan.RECIPES[name].label for name in part]
        line[0].set_yticks([-i for i in range(len(part))], labels)
        for row in where(rows, stage="teacher"):
            line[2].axvline(100 * row["tail_teacher"], color=TEACHER_COLOUR, ls="--", lw=0.8)
    for axis, (_, title) in zip(axes[-1], columns, strict=True):
        axis.set_xlabel(title)
    handles = [
        plt.Line2D([], [], color="black", marker=SEEDS[seed % len(SEEDS)], ls="", label=f"{seed}")
        for seed in sorted({row["seed"] for row in where(rows, stage="teacher")})
    ]
    handles.append(plt.Line2D([], [], color="black", label="mean"))
    figure.legend(
        handles=handles, title="split", loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def sizes(rows: list[Row]) -> Any:
    """TAR against the student's parameters, and against the length of the training."""
    figure, axes = plt.subplots(
        1, 2, figsize=(8.6, 3.7), sharey=True, width_ratios=[1.4, 1], layout="constrained"
    )
    run = [c for c in COLUMNS if all(reported(rows, name, *c) for name in plan.SIZED)]
    by_size = [(shape, longer) for shape, longer in run if longer == 1]
    by_length = [(shape, longer) for shape, longer in run if shape == plan.TUNED_SHAPE]
    for axis, points, column in zip(
        axes, (by_size, by_length), ("parameters", "epochs"), strict=True
    ):
        for index, name in enumerate(plan.SIZED):
            _trend(axis, rows, name, points, column, shift=1.04 ** (index - 1.5))
        for row in where(rows, stage="teacher"):
            axis.axhline(100 * row[SCORE], color=TEACHER_COLOUR, ls="--", lw=0.8)
        axis.set_xscale("log")
        axis.grid(alpha=0.25)
    (teacher, *_) = where(rows, stage="teacher")
    sizes = [reported(rows, "ce", *point)[0]["parameters"] for point in by_size]
    lengths = [reported(rows, "ce", *point)[0]["epochs"] for point in by_length]
    ticks = [f"{n:,}\n1/{teacher['parameters'] / n:.0f}" for n in sizes]
    axes[0].set_xticks(sizes, ticks)
    axes[1].set_xticks(lengths, [str(n) for n in lengths])
    for axis in axes:
        axis.set_xticks([], minor=True)
    axes[0].set(ylim=(30, 100), ylabel="TAR at FAR 1e-2, unseen characters, %")
    axes[0].set_xlabel("student's parameters, and their share of the teacher's")
    axes[1].set_xlabel(f"epochs, student of {by_length[0][0][:-1]} times fewer parameters")
    axes[0].set_title("dashed: the teachers; marks: splits; lines: means", fontsize=8)
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _trend(
    axis: Any, rows: list[Row], name: str, points: list[tuple[str, int]], column: str, shift: float
) -> None:
    means = []
    for point in points:
        found = reported(rows, name, *point)
        place = found[0][column] * shift
        for row in found:
            mark = SEEDS[row["seed"] % len(SEEDS)]
            axis.plot(place, 100 * row[SCORE], mark, color=COLOUR[name], ms=4.5, alpha=0.8)
        means.append((place, 100 * sum(row[SCORE] for row in found) / len(found)))
    label = plan.RECIPES[name].label
    axis.plot(*zip(*means, strict=True), color=COLOUR[name], linewidth=1.2, label=label)


def tuning(rows: list[Row]) -> Any:
    """What the choice of weights and learning rate saw."""
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.4), sharey=True, width_ratios=[1, 2.4], layout="constrained"
    )
    for name in plan.MAIN:
        axis = axes[0] if name == "ce" else axes[1]
        usual, other = plan.ladder(name).seconds
        points = sorted(
            (plan.ladder(name).value(entry.rung), 100 * row["val_tar"], entry.second)
            for entry, row in tries(rows, name)
        )
        line = [(x, y) for x, y, second in points if second == usual]
        label = plan.RECIPES[name].label
        axis.plot(*zip(*line, strict=True), "o-", color=COLOUR[name], ms=4, lw=1.2, label=label)
        for x, y, second in points:
            if second == other:
                axis.plot(x, y, "x", color=COLOUR[name], markersize=7)
    axes[0].set(xscale="log", xlabel="learning rate", ylabel="validation TAR at FAR 1e-2, %")
    rates = sorted({row["learning_rate"] for _, row in tries(rows, "ce")})
    axes[0].set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes[0].set_xticks([], minor=True)
    usual, other = plan.ladder("ce").seconds
    axes[0].set_title(f"cross-entropy\ncross: margin {other:g}, not {usual:g}", fontsize=9)
    axes[1].set(xscale="log", xlabel="weight of the distillation term")
    axes[1].set_title("distilled\ncross: no warm-up, not half", fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def groups(rows: list[Row]) -> Any:
    """How a user chooses threshold, temperature and scale."""
    found = where(rows, stage="groups")
    classes = where(rows, stage="teacher", seed=0)[0]["classes"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    sharpness = sorted({row["sharpness"] for row in where(found, ranked="teacher")})
    thresholds = sorted({row["threshold"] for row in found})
    blues = plt.get_cmap("viridis")
    for axis, ranked in zip(axes[:2], ("teacher", "student"), strict=True):
        for index, sharp in enumerate(sharpness):
            line = where(found, ranked=ranked, sharpness=sharp)
            colour = blues(0.9 * index / (len(sharpness) - 1))
            x = range(len(line))
            axis.plot(x, [r["median"] for r in line], ".-", color=colour, label=f"{sharp}")
            axis.fill_between(
                x,
                [r["p20"] for r in line],
                [r["p80"] for r in line],
                color=colour,
                alpha=0.15,
                lw=0,
            )
        axis.set_xticks(range(len(thresholds)), [f"{t:g}" for t in thresholds], fontsize=8)
        axis.axvline(thresholds.index(0.93), color="black", lw=0.6, ls=":")
        axis.set_xlabel("threshold (dotted: the default)")
        axis.set_title(f"ranked by the {ranked}: median, 20% to 80%", fontsize=9)
        axis.grid(alpha=0.25)
    batch = where(found, ranked="batch")
    axes[1].plot(
        range(len(batch)), [r["median"] for r in batch], "k--", lw=1.2, label="batch-adaptive, 64/1"
    )
    axes[1].legend(frameon=False, fontsize=8, handles=axes[1].lines[-1:], loc="lower right")
    axes[0].set_yscale("log")
    axes[0].set_ylabel(f"classes in the group, of {classes:,}")
    figure.legend(
        handles=axes[0].lines[: len(sharpness)],
        title="scale / T",
        loc="outside right upper",
        frameon=False,
        fontsize=8,
    )
    for threshold, style in ((0.5, ":"), (0.8, "-."), (0.93, "-"), (0.99, "--")):
        line = sorted(where(found, ranked="teacher", threshold=threshold), key=_sharpness)
        axes[2].plot(
            [r["sharpness"] for r in line],
            [r["median"] for r in line],
            style,
            color="black",
            label=f"{threshold:g}",
        )
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(sharpness, [f"{s}\nT={64 / s:g}" for s in sharpness], fontsize=8)
    axes[2].set_xlabel("scale / T (below: T at scale 64)")
    axes[2].set_title("the same by the teacher, across scale / T", fontsize=9)
    axes[2].legend(title="threshold", frameon=False, fontsize=8)
    axes[2].grid(alpha=0.25)
    return figure


def _sharpness(row: Row) -> float:
    return float(row["sharpness"])
