"""A network's numbers on verification sets, as a table and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, so that no display is needed
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from .images import SIZE, decode, to_input
from .scalars import read as read_scalars
from .verification import bins, folds, roc, templates

_AT_ONCE = 128


@dataclass
class Result:
    """What one network has on one set; what a set has no numbers for is None."""

    network: str
    set: str
    accuracy: float | None = None
    std: float | None = None
    tar: dict[str, float | None] = field(default_factory=dict)
    genuine: int = 0
    impostors: int = 0
    curve: roc.Roc | None = None

    def plain(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "curve"}


@torch.no_grad()
def embed(
    network: nn.Module, files: Iterable[bytes], device: torch.device, progress: bool
) -> NDArray[np.float64]:
    """[N, E] of image files: the embedding of the image plus that of its mirror image."""
    network.eval()
    dtype = next(network.parameters()).dtype
    found = []
    for part in tqdm(list(_batches(files)), desc="embed", unit="batch", disable=not progress):
        pixels = torch.from_numpy(np.stack([decode(file, SIZE) for file in part]))
        images = to_input(pixels.to(device)).to(dtype)
        found.append((network(images) + network(images.flip(3))).double().cpu().numpy())
    return np.concatenate(found)


def _batches(files: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for file in files:
        batch.append(file)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def on_pairs(
    name: str, network: nn.Module, path: Path, device: torch.device, progress: bool
) -> Result:
    """10-fold accuracy on a .bin set."""
    pairs = bins.read(path)
    distance = folds.distances(embed(network, pairs.images, device, progress))
    found = folds.accuracy(distance, pairs.same)
    result = _of_scores(Result(name, path.stem), -distance, pairs.same)
    result.accuracy, result.std = found.mean, found.std
    return result


def on_templates(
    name: str, network: nn.Module, folder: Path, device: torch.device, progress: bool
) -> Result:
    """TAR at FAR on a set with IJB's files.

    Args:
        name: of the network.
        network: an embedder.
        folder: meta/*_face_tid_mid.txt, meta/*_template_pair_label.txt, images aligned to 112 x 112
            in aligned/, and the detector's scores, the last number of each line, in
            meta/*_name_5pts_score.txt if there is one.
        device: the network's.
        progress: whether to show it.
    """
    media = templates.read_media(_one(folder, "*_face_tid_mid.txt"))
    pairs = templates.read_pairs(_one(folder, "*_template_pair_label.txt"))
    files = ((folder / "aligned" / image).read_bytes() for image in media.images)
    embeddings = embed(network, files, device, progress)
    for path in (folder / "meta").glob("*_name_5pts_score.txt"):
        scores = {line.split()[0]: float(line.split()[-1]) for line in path.open()}
        embeddings *= np.array([scores[image] for image in media.images])[:, None]
    return of_embeddings(name, folder.name, embeddings, media, pairs)


def of_embeddings(
    name: str,
    set_name: str,
    embeddings: NDArray[np.floating],
    media: templates.Media,
    pairs: templates.TemplatePairs,
) -> Result:
    """The same of embeddings that another program made."""
    numbers, pooled = templates.embed_templates(embeddings, media)
    scores = templates.scores(numbers, pooled, pairs)
    return _of_scores(Result(name, set_name), scores, pairs.same)


def _of_scores(result: Result, scores: NDArray[np.float64], same: NDArray[np.bool_]) -> Result:
    curve = result.curve = roc.roc(scores, same)
    result.genuine, result.impostors = curve.genuine, curve.impostors
    result.tar = {f"{rate:g}": roc.tar_at(curve, rate) for rate in (1e-2, 1e-3, *roc.RATES)}
    return result


def _one(folder: Path, pattern: str) -> Path:
    found = sorted((folder / "meta").glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder / 'meta'}: {len(found)} files {pattern}, needs one")
    return found[0]


def table(results: list[Result]) -> str:
    """Markdown. A dash: the set has too few impostor pairs for that FAR, or no folds."""
    rates = list(results[0].tar)
    head = ["network", "set", "accuracy %", *(f"TAR % at {rate}" for rate in rates)]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for x in results:
        accuracy = (
            "-" if x.accuracy is None else f"{100 * x.accuracy:.2f} ± {100 * (x.std or 0):.2f}"
        )
        tars = ["-" if (tar := x.tar[rate]) is None else f"{100 * tar:.2f}" for rate in rates]
        lines.append("| " + " | ".join([x.network, x.set, accuracy, *tars]) + " |")
    return "\n".join(lines)


def draw_roc(results: list[Result], path: Path) -> None:
    """All curves, FAR on a logarithmic axis, which begins at one impostor pair."""
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for x in results:
        assert x.curve is not None
        label = f"{x.network}, {x.set}"
        axis.step(
            np.maximum(x.curve.far, 0.5 / x.impostors), x.curve.tar, where="post", label=label
        )
    axis.set(xscale="log", xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.01))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_training(paths: list[Path], path: Path) -> None:
    """The loss of each network, and the size of the groups."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for file in paths:
        rows = read_scalars(file)
        steps = [int(row["step"]) for row in rows]
        for axis, column in ((left, "cross_entropy"), (right, "group_size")):
            points = [(s, float(r[column])) for s, r in zip(steps, rows, strict=True) if r[column]]
            if points:
                axis.plot(*zip(*points, strict=True), label=file.stem)
    left.set(xlabel="step", ylabel="cross-entropy, with margin")
    right.set(xlabel="step", ylabel="classes in the primary group, median")
    left.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
