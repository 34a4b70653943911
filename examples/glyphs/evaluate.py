"""Closed-set accuracy and open-set verification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .augment import to_float
from .data import Part
from .models import Recogniser

FALSE_ACCEPT_RATES = (1e-2, 1e-3)


@dataclass(frozen=True)
class Verification:
    """Pairs of photographs: are they one identity? By the cosine of their embeddings."""

    tar: dict[str, float]  #: true accept rate at each of FALSE_ACCEPT_RATES
    curve: list[tuple[float, float]]  #: (false accept rate, true accept rate)
    pairs: tuple[int, int]  #: same identity, different identities


@torch.no_grad()
def embed(model: Recogniser, images: Tensor) -> Tensor:
    device = model.head.device
    return torch.cat([model(to_float(chunk.to(device))) for chunk in images.split(1024)])


@torch.no_grad()
def top1(model: Recogniser, part: Part) -> float:
    """Share of photographs whose nearest class vector is their own."""
    nearest = model.cosines(embed(model, part.images)).argmax(dim=1).cpu()
    return (nearest == part.labels).double().mean().item()


def _scores(model: Recogniser, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all genuine and all impostor pairs of the part's photographs."""
    embeddings = embed(model, part.images).cpu()
    similarity = embeddings @ embeddings.t()
    upper = torch.ones_like(similarity, dtype=torch.bool).triu(1)
    same = part.labels[:, None] == part.labels[None]
    return similarity[upper & same].numpy(), similarity[upper & ~same].numpy()


def verify(model: Recogniser, part: Part) -> Verification:
    """All pairs of the part's photographs."""
    genuine, impostor = (np.sort(scores) for scores in _scores(model, part))
    rates = np.unique(np.concatenate([np.geomspace(1e-5, 1, 61), FALSE_ACCEPT_RATES]))
    curve = [(float(rate), _tar(genuine, impostor, rate)) for rate in rates]
    return Verification(
        tar={f"{rate:g}": _tar(genuine, impostor, rate) for rate in FALSE_ACCEPT_RATES},
        curve=curve,
        pairs=(len(genuine), len(impostor)),
    )


def accept_rates(model: Recogniser, part: Part) -> list[float]:
    """`verify`'s TAR at each of FALSE_ACCEPT_RATES, without sorting tens of millions of pairs."""
    genuine, impostor = _scores(model, part)
    most = int(max(FALSE_ACCEPT_RATES) * len(impostor)) + 1
    # Only the highest scores decide; the rest need not be in order.
    highest = np.partition(impostor, len(impostor) - min(most, len(impostor)))
    highest[-most:].sort()
    return [_tar(np.sort(genuine), highest, rate) for rate in FALSE_ACCEPT_RATES]


def _tar(genuine: np.ndarray, impostor: np.ndarray, rate: float) -> float:
    """Share of genuine pairs above the score that at most `rate` of the impostors exceed."""
    accepted = int(rate * len(impostor) + 1e-9)
    if accepted >= len(impostor):
        return 1.0
    bar = impostor[len(impostor) - 1 - accepted]
    return float(1 - np.searchsorted(genuine, bar, side="right") / len(genuine))
