"""The figures: a sheet of glyphs, the ROC, and what happened during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, so that no display is needed
import matplotlib.pyplot as plt
import torch
from PIL import Image

from .data import Split
from .train import Views

COLOURS = {"ce": "#7f7f7f", "kd": "#0072b2", "gkd": "#d55e00", "gkd-student": "#009e73"}
WIDTHS = {"kd": 3.0}  # it often lies under another curve, and shows on both sides of it so
SAVE: dict[str, Any] = {"dpi": 110, "bbox_inches": "tight"}


def save_all(report: dict[str, Any], split: Split, views: Views, out: Path) -> list[Path]:
    """Writes every figure into `out` and returns their paths."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    paths = [out / f"glyphs_{name}.png" for name in ("sheet", "roc", "training")]
    sheet(split, views, paths[0])
    roc(report, paths[1])
    training(report, paths[2])
    return paths


def sheet(split: Split, views: Views, path: Path, rows: int = 10) -> None:
    """Some identities: photographs for training, those for testing, and distorted views."""
    rows = min(rows, split.classes)
    chosen = torch.linspace(0, split.classes - 1, rows).round().long().tolist()
    groups: list[tuple[str, list[torch.Tensor]]] = [
        ("train", [split.train.images[split.train.labels == i][:10] for i in chosen]),
        ("test", [split.closed_test.images[split.closed_test.labels == i][:2] for i in chosen]),
        (
            "distorted training views",
            [_views_of(views, i)[:6] for i in chosen],
        ),
    ]
    columns = [max(len(images) for images in part) for _, part in groups]
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(sum(columns) * 0.4 + 0.4, rows * 0.4 + 0.3),
        width_ratios=columns,
        gridspec_kw={"wspace": 0.03},
    )
    for axis, (title, part), width in zip(axes, groups, columns, strict=True):
        side = part[0].shape[-1]
        canvas = torch.zeros(rows * side, width * side, dtype=torch.uint8)
        for row, images in enumerate(part):
            for column, image in enumerate(images):
                canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = image
        axis.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.savefig(path, **SAVE)
    plt.close(figure)
    # Noise compresses badly, and 24 greys are enough for it: a quarter of the size.
    _shrink(path, "L", 24)


def _shrink(path: Path, mode: str, colours: int) -> None:
    with Image.open(path) as image:
        image.convert(mode).quantize(colours).save(path, optimize=True)


def _views_of(views: Views, label: int) -> torch.Tensor:
    """One view of each training photograph, a different one for each."""
    photographs = torch.nonzero(views.labels == label).flatten()
    turn = torch.arange(len(photographs), device=photographs.device) % len(views.images)
    return views.images[turn, photographs, 0].cpu()


def roc(report: dict[str, Any], path: Path) -> None:
    """True against false accept rate on identities that nobody trained on."""
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    same, different = report["teacher"]["pairs"]
    lines: list[tuple[str, Any, dict[str, Any]]] = [
        ("teacher", report["teacher"], {"color": "black", "linestyle": "--", "linewidth": 1.4})
    ]
    for name, entry in report["students"].items():
        style = {"color": COLOURS.get(name), "linewidth": WIDTHS.get(name, 1.4)}
        lines.append((entry["label"], entry, style))
    for label, entry, style in lines:
        axis.plot(*zip(*entry["roc"], strict=True), label=label, **style)
    axis.set_xscale("log")
    axis.set(xlim=(max(1e-5, 1 / different), 1), ylim=(0, 1.01), xlabel="false accept rate (FAR)")
    axis.set_ylabel("true accept rate (TAR)")
    axis.set_title(f"Unseen identities: {same:,} genuine, {different:,} impostor pairs", fontsize=9)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", frameon=False)
    figure.savefig(path, **SAVE)
    plt.close(figure)


def training(report: dict[str, Any], path: Path) -> None:
    """Loss terms, group size and the mass outside the group over the steps of each student."""
    panels = [
        ("primary", "Primary-KD", "log"),
        ("binary", "Binary-KD", "log"),
        ("secondary", "Secondary-KD (not in GKD's loss)", "log"),
        ("cross_entropy", "cross-entropy with margin", "linear"),
        ("group_share", "group size, share of the classes", "linear"),
        ("student_outside", "student's mass outside the group", "linear"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), sharex=True, layout="constrained")
    for axis, (key, title, scale) in zip(axes.flat, panels, strict=True):
        for name, entry in report["students"].items():
            history = entry["history"]
            axis.plot(
                history["step"],
                history[key],
                color=COLOURS.get(name),
                label=entry["label"],
                linewidth=1.4,
            )
        axis.set_title(title, fontsize=9)
        axis.set_yscale(scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    for entry in report["students"].values():
        if entry["arguments"].get("rank_by", "teacher") == "teacher":
            history = entry["history"]
            axes[1, 2].plot(
                history["step"],
                history["teacher_outside"],
                "k--",
                linewidth=1.2,
                label="the teacher's, by its own ranking",
            )
            axes[1, 2].legend(frameon=False, loc="upper right", handles=axes[1, 2].lines[-1:])
            break
    for axis in axes[1]:
        axis.set_xlabel("step")
    handles = axes[0, 0].lines
    figure.legend(
        handles=handles, loc="outside upper center", ncols=max(1, len(handles)), frameon=False
    )
    figure.savefig(path, **SAVE)
    plt.close(figure)
    _shrink(path, "RGB", 64)
