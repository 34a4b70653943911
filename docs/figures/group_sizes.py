"""Draws group_sizes.png, how many classes a group has: ``python docs/figures/group_sizes.py``.

Above, a simulated head: 85,742 random directions of 512 dimensions, and rows that have a given
cosine to their own. Below, the demo's teacher and the student that it trains last, from
group_sizes.csv beside this file: after ``make demo``, ``--logits examples/glyphs/out/logits.pt``
writes that anew.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

import gkd

ROWS, CLASSES, DIM, SCALE, MARGIN = 16, 85_742, 512, 64.0, 0.4
DEMO_MARGIN = 0.2  # what the demo trains with
AUTHORS = 10_000 / 85_742
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.93, 0.96, 0.98, 0.99, 0.999)
THRESHOLD = 0.93  # gkd.loss's own
SHARPEST, SOFTEST = 1.0, 4.0  # the authors' temperature for their sizes, and that of their terms
COLOURS = {0.3: "#440154", 0.5: "#31688e", 0.7: "#35b779", 0.8: "#d0a000"}
NETWORKS = {"teacher": "#0b6e4f", "student": "#c0392b"}
DEMO = Path(__file__).with_name("group_sizes.csv")

#: (margin in, group temperature, threshold) to (20%, 50%, 80%) of the rows' sizes.
Sizes = dict[tuple[bool, float, float], tuple[float, ...]]


def simulated() -> dict[float, Tensor]:
    """[ROWS, CLASSES] cosines by a row's cosine to its own class; that of row k is class k."""
    generator = torch.Generator().manual_seed(0)
    head = F.normalize(torch.randn(CLASSES, DIM, generator=generator))
    found = {}
    for own in COLOURS:
        noise = F.normalize(torch.randn(ROWS, DIM, generator=generator))
        features = F.normalize(own * head[:ROWS] + (1 - own**2) ** 0.5 * noise)
        found[own] = features @ head.T
    return found


def sizes(cosines: Tensor, target: Tensor, margin: float) -> Sizes:
    """At every temperature and the default threshold, and at every threshold and two temperatures;
    without the margin and with it."""
    asked = [(t, THRESHOLD) for t in TEMPERATURES]
    asked += [(t, x) for t in (SHARPEST, SOFTEST) for x in THRESHOLDS]
    quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found: Sizes = {}
    for inside in (False, True):
        for temperature, threshold in dict.fromkeys(asked):
            group = gkd.group(
                cosines,
                cosines,
                target,
                scale=SCALE,
                margin=margin,
                distill_margin=inside,
                threshold=threshold,
                group_temperature=temperature,
            )
            key = (inside, temperature, threshold)
            found[key] = tuple(group.size.double().quantile(quantiles).tolist())
    return found


def measure_demo(path: Path) -> None:
    """Writes group_sizes.csv from the demo's logits."""
    saved = torch.load(path, weights_only=True)
    with DEMO.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["network", "classes", "margin", "temperature", "threshold"]
        writer.writerow([*names, "p20", "median", "p80"])
        for network in NETWORKS:
            cosines = saved[network].float() / SCALE
            for key, found in sizes(cosines, saved["target"], DEMO_MARGIN).items():
                writer.writerow([network, cosines.shape[1], *map(float, key), *found])


def demo() -> tuple[int, dict[str, Sizes]]:
    """Classes, and sizes by network."""
    found: dict[str, Sizes] = {}
    classes = 0
    with DEMO.open() as file:
        for line in csv.DictReader(file):
            classes = int(line["classes"])
            margin, *key = (float(line[k]) for k in ("margin", "temperature", "threshold"))
            quantiles = tuple(float(line[k]) for k in ("p20", "median", "p80"))
            found.setdefault(line["network"], {})[(margin > 0, key[0], key[1])] = quantiles
    return classes, found


def lines(axes: tuple[plt.Axes, ...], found: Sizes, colour: str, label: str) -> None:
    """Medians: against the temperature, then against the threshold at two of them."""
    for inside, style in ((False, "--"), (True, "-")):
        shown = {"color": colour, "linestyle": style, "linewidth": 1.3}
        values = [found[inside, t, THRESHOLD][1] for t in TEMPERATURES]
        axes[0].plot(TEMPERATURES, values, label=label if inside else None, **shown)
        for temperature, mark in ((SHARPEST, "."), (SOFTEST, "")):
            values = [found[inside, temperature, x][1] for x in THRESHOLDS]
            axes[1].plot(range(len(THRESHOLDS)), values, marker=mark, **shown)


def finish(axes: tuple[plt.Axes, ...], classes: int, title: str) -> None:
    for ax in axes:
        ax.set(yscale="log", ylim=(0.7, 1.6 * classes))
        ax.axhline(classes, color="#333333", linewidth=0.6)
        ax.axhline(AUTHORS * classes, color="#333333", linewidth=0.8, linestyle=":")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
    share = f"{AUTHORS:.1%} of the classes"
    axes[0].text(0.5, 1.12 * AUTHORS * classes, share, fontsize=7.5, va="bottom")
    axes[0].set_title(f"{title}: threshold {THRESHOLD}", loc="left", fontsize=9)
    axes[0].set(xscale="log", ylabel=f"classes in the group, of {classes:,}")
    axes[0].set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes[0].minorticks_off()
    axes[1].set_title("dots: group temperature 1; no dots: 4", loc="left", fontsize=9)
    axes[1].set_xticks(range(len(THRESHOLDS)), [f"{x:g}" for x in THRESHOLDS], fontsize=7.5)
    axes[1].axvline(THRESHOLDS.index(THRESHOLD), color="#333333", linewidth=0.6)


def draw(output: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(8.0, 6.8), layout="constrained", sharey="row")
    for own, cosines in simulated().items():
        found = sizes(cosines, torch.arange(ROWS), MARGIN)
        lines(tuple(axes[0]), found, COLOURS[own], f"cosine to own class {own}")
    finish(tuple(axes[0]), CLASSES, "simulated head")
    classes, networks = demo()
    for name, found in networks.items():
        lines(tuple(axes[1]), found, NETWORKS[name], f"the demo's {name}")
    finish(tuple(axes[1]), classes, "the demo's head")
    axes[1][0].set_xlabel("group temperature (solid: margin in the logits; dashed: none)")
    axes[1][1].set_xlabel("threshold")
    handles = [line for row in axes for line in row[0].lines if line.get_label()[0] != "_"]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(output / "group_sizes.png", dpi=170)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    parser.add_argument("--logits", type=Path, help="of the demo: write group_sizes.csv from them")
    options = parser.parse_args()
    if options.logits:
        measure_demo(options.logits)
    plt.rcParams["font.size"] = 9
    draw(options.output)


if __name__ == "__main__":
    main()
