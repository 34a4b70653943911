"""Draws concept.png, one row split into its groups: ``python docs/figures/concept.py``.

The row is synthetic: cosines of a head of 1,000 identities times 64, with one clear winner, a dozen
similar classes and many dissimilar ones. Group, cut and terms are the output of gkd.group.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from command import run

import gkd

CLASSES, SCALE, TEMPERATURE, THRESHOLD = 1000, 64, 4.0, 0.93
INSIDE, OUTSIDE, STUDENT = "#0b6e4f", "#9aa5ab", "#c0392b"
WIDTH = 8.0


def row() -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits [1, C]; class 0 is the sample's own."""
    generator = torch.Generator().manual_seed(2304)
    cosines = 0.05 * torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    cosines[0] = 0.58
    cosines[1:13] = 0.28 + 0.16 * torch.rand(12, generator=generator, dtype=torch.float64)
    noise = torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    student = 0.8 * cosines + 0.045 * noise
    return SCALE * student[None], SCALE * cosines[None]


def panel(ax: plt.Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=9.5)
    ax.spines[["top", "right"]].set_visible(False)


def pairs(ax: plt.Axes, places: list[str], heights: list[tuple[float, float]], colours) -> None:  # type: ignore[no-untyped-def]
    """The teacher's probability beside the student's, for each place."""
    for k, (p, q) in enumerate(heights):
        ax.bar(k - 0.2, p, 0.38, color=colours[k])
        ax.bar(k + 0.2, q, 0.38, facecolor="none", edgecolor=STUDENT, linewidth=1.2)
    ax.set_xticks(range(len(places)), places)
    ax.tick_params(axis="x", length=0)


def draw(output: Path) -> None:
    student, teacher = row()
    how = {"temperature": TEMPERATURE, "threshold": THRESHOLD, "secondary_weight": 1.0}
    found = gkd.group(student, teacher, return_mask=True, **how)
    size, mask = int(found.size), found.mask[0]
    p, q = ((x / TEMPERATURE).softmax(1)[0] for x in (teacher, student))
    order = p.argsort(descending=True)
    ranked_p, ranked_q = p[order].numpy(), q[order].numpy()
    assert mask[order[:size]].all() and not mask[order[size:]].any()
    mass_p, mass_q = float(found.mass_teacher), float(found.mass_student)
    rank = np.arange(1, CLASSES + 1)

    figure = plt.figure(figsize=(WIDTH, 6.6), layout="constrained")
    grid = figure.add_gridspec(3, 6, height_ratios=[1.25, 1, 1])
    top = figure.add_subplot(grid[0, :])
    panel(top, "The teacher ranks the classes: softened probability by rank")
    top.plot(rank[size:], ranked_q[size:], ".", color=STUDENT, markersize=2.5, alpha=0.6)
    top.plot(rank[:size], ranked_q[:size], "o", mfc="none", color=STUDENT, markersize=5)
    top.fill_between(rank[size:], 1e-6, ranked_p[size:], color=OUTSIDE, linewidth=0)
    top.bar(rank[:size], ranked_p[:size], 0.12 * rank[:size], color=INSIDE, bottom=0)
    top.set(xscale="log", yscale="log", ylim=(1e-5, 1), xlim=(0.85, CLASSES * 1.1))
    top.text(2.2, 0.35, f"primary group, {size} classes", color=INSIDE, weight="bold")
    top.text(60, 0.03, f"the rest, {CLASSES - size} classes", color="#5d686e", weight="bold")
    top.text(60, 0.11, "circles, dots: the student's q", color=STUDENT)

    middle = figure.add_subplot(grid[1, :], sharex=top)
    panel(middle, "Running sum of p: the group ends where it reaches the threshold")
    total = ranked_p.cumsum()
    middle.fill_between(rank[:size], 0, total[:size], color=INSIDE, alpha=0.25, linewidth=0)
    middle.plot(rank[:size], total[:size], "o-", color=INSIDE, markersize=3)
    middle.plot(rank[size - 1 :], total[size - 1 :], color=OUTSIDE, linewidth=2)
    middle.axhline(THRESHOLD, color="#333333", linewidth=0.8, linestyle=":")
    middle.text(0.9, THRESHOLD + 0.03, f"threshold {THRESHOLD}", fontsize=8)
    middle.axvline(size + 0.5, color="#333333", linewidth=0.8)
    middle.text(size + 1.2, 0.15, f"cut: a logit of {float(found.cut):.1f}", fontsize=8)
    middle.set(xlabel="rank of the class", ylim=(0, 1.12))
    middle.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])

    binary = figure.add_subplot(grid[2, 0:2])
    panel(binary, f"Binary-KD {float(found.binary):.3f}: group, rest")
    pairs(
        binary, ["P, Q", "P', Q'"], [(mass_p, mass_q), (1 - mass_p, 1 - mass_q)], [INSIDE, OUTSIDE]
    )
    primary = figure.add_subplot(grid[2, 2:4])
    panel(primary, f"Primary-KD {float(found.primary):.3f}: p/P, q/Q")
    inside = [
        (float(a) / mass_p, float(b) / mass_q) for a, b in zip(ranked_p, ranked_q, strict=True)
    ]
    ranks = [str(k + 1) if k == 0 or k % 5 == 4 else "" for k in range(size)]
    pairs(primary, ranks, inside[:size], [INSIDE] * size)
    primary.set_yscale("log")
    primary.minorticks_off()
    rest = figure.add_subplot(grid[2, 4:6])
    panel(rest, f"Secondary-KD {float(found.secondary):.2f}: not used")
    rest.plot(rank[size:], ranked_q[size:] / (1 - mass_q), ".", color=STUDENT, markersize=2)
    rest.plot(rank[size:], ranked_p[size:] / (1 - mass_p), color=OUTSIDE, linewidth=2)
    rest.set(xscale="log", yscale="log")
    rest.set_xticks([10, 100, 1000], ["10", "100", "1,000"])
    rest.minorticks_off()
    for ax in (primary, rest):
        ax.set_xlabel("rank of the class")
    figure.savefig(output / "concept.png", dpi=170)
    plt.close(figure)


if __name__ == "__main__":
    run(draw, __doc__)
