"""10-fold accuracy of pairs, as the field reports it for LFW, CFP-FP, AgeDB-30 and their like.

A pair is the same person where |a - b|^2 of its unit embeddings is below a threshold. For each fold
the threshold, of 0, 0.01, ..., 3.99, is the first that is best on the nine others. Folds are runs
of the pairs in the file's order, the first of them one pair longer where ten do not divide them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.arange(0, 4, 0.01)
FOLDS = 10


class Accuracy(NamedTuple):
    """Over the folds."""

    mean: float
    std: float  #: divided by the number of folds, not by one less
    threshold: float  #: the mean of the folds' own


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1; one of length 0 stays."""
    rows = embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def distances(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """|a - b|^2 of rows 2 i and 2 i + 1, normalised: [N]."""
    rows = unit(embeddings)
    return np.square(rows[0::2] - rows[1::2]).sum(1)


def accuracy(distance: NDArray[np.float64], same: NDArray[np.bool_]) -> Accuracy:
    """Of N pairs, at least as many as folds.

    Raises:
        ValueError: fewer pairs.
    """
    pairs = len(same)
    if pairs < FOLDS:
        raise ValueError(f"{pairs} pairs do not make {FOLDS} folds")
    right = (distance[None, :] < THRESHOLDS[:, None]) == same[None, :]  # [thresholds, N]
    sizes = [pairs // FOLDS + (fold < pairs % FOLDS) for fold in range(FOLDS)]
    ends = np.cumsum(sizes)
    hits = np.stack([right[:, e - n : e].sum(1) for e, n in zip(ends, sizes, strict=True)], 1)
    others = hits.sum(1, keepdims=True) - hits
    best = others.argmax(0)  # the first of several
    found = hits[best, np.arange(FOLDS)] / np.array(sizes)
    return Accuracy(float(found.mean()), float(found.std()), float(THRESHOLDS[best].mean()))
