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


def verify(model: Recogniser, part: Part) -> Verification:
    """All pairs of the part's photographs."""
    embeddings = embed(model, part.images).cpu()
    similarity = embeddings @ embeddings.t()
    upper = torch.ones_like(similarity, dtype=torch.bool).triu(1)
    same = part.labels[:, None] == part.labels[None]
    genuine = np.sort(similarity[upper & same].numpy())
    impostor = np.sort(similarity[upper & ~same].numpy())
    rates = np.unique(np.concatenate([np.geomspace(1e-5, 1, 61), FALSE_ACCEPT_RATES]))
    curve = [(float(rate), _tar(genuine, impostor, rate)) for rate in rates]
    return Verification(
        tar={f"{rate:g}": _tar(genuine, impostor, rate) for rate in FALSE_ACCEPT_RATES},
        curve=curve,
        pairs=(len(genuine), len(impostor)),
    )


def _tar(genuine: np.ndarray, impostor: np.ndarray, rate: float) -> float:
    """Share of genuine pairs above the score that at most `rate` of the impostors exceed."""
    accepted = int(rate * len(impostor) + 1e-9)
    if accepted >= len(impostor):
        return 1.0
    bar = impostor[len(impostor) - 1 - accepted]
    return float(1 - np.searchsorted(genuine, bar, side="right") / len(genuine))
