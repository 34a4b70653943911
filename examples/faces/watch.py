"""Verification while a network trains, on the first rank as arcface_torch's callback does it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from . import verify
from .recipe import Recipe
from .scalars import read


class Watch:
    """Accuracies on the `.bin` sets; the network with the best mean of them is kept.

    Args:
        csv: NAME.csv of a run, where an earlier part of it has written its accuracies. The best
            backbone goes beside it, NAME_best.pt.
        recipe: its pairs are the sets, by the files' names without `.bin`.
        device: the network's.
    """

    def __init__(self, csv: Path, recipe: Recipe, device: torch.device) -> None:
        self.every = recipe.verify_every if recipe.pairs else 0
        self.paths = [Path(path) for path in recipe.pairs] if self.every else []
        self.sets = [path.stem for path in self.paths]
        self.file, self.device = csv.with_name(f"{csv.stem}_best.pt"), device
        self.best = 0.0  #: the mean of the sets, highest so far
        for row in read(csv):
            found = [float(row[name]) for name in self.sets if row.get(name)]
            if found:
                self.best = max(self.best, sum(found) / len(found))

    def due(self, step: int) -> bool:
        """Whether to verify the network that has made so many steps."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Each set's accuracy; the network is left in the mode that it was in."""
        was_training = network.training
        found = {
            path.stem: verify.on_pairs("", network, path, self.device, False).accuracy or 0.0
            for path in self.paths
        }
        network.train(was_training)
        mean = sum(found.values()) / len(found)
        if mean > self.best:
            self.best = mean
            torch.save({k: v.cpu() for k, v in network.state_dict().items()}, self.file)
        return found
