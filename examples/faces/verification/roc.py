"""The ROC curve of scored pairs, and TAR at a FAR as IJB-B and IJB-C are reported."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATES = (1e-4, 1e-5, 1e-6)


class Roc(NamedTuple):
    """A point per distinct score, from the highest down; (0, 0) is the first."""

    far: NDArray[np.float64]  #: share of impostor pairs with at least that score
    tar: NDArray[np.float64]  #: the same of genuine pairs
    impostors: int
    genuine: int


def roc(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> Roc:
    """Of pairs [N]. Equal scores are accepted together.

    Raises:
        ValueError: no genuine pair, no impostor pair, or a score that is NaN.
    """
    genuine = int(same.sum())
    impostors = len(same) - genuine
    if not genuine or not impostors:
        raise ValueError(f"{genuine} genuine and {impostors} impostor pairs make no ROC curve")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)
    accepted = np.cumsum(same[order])[last]
    far = (last + 1 - accepted) / impostors
    return Roc(np.append(0.0, far), np.append(0.0, accepted / genuine), impostors, genuine)


def tar_at(curve: Roc, rate: float) -> float | None:
    """TAR at the point whose FAR is nearest to the rate, as the field's scripts choose it: of
    several, the largest FAR, then the largest TAR. None where the rate is less than one pair's.
    """
    if rate * curve.impostors < 1 - 1e-9:
        return None
    gap = np.abs(curve.far - rate)
    nearest = len(gap) - 1 - int(gap[::-1].argmin())
    return float(curve.tar[nearest])
