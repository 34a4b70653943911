"""The teacher: its backbone or its cached embeddings, and its head or its classes' centres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import gkd

from . import ranks
from .data import Photographs
from .images import to_input

_AT_ONCE = 256


class Teacher:
    """Features of images, from the network or from the cache, and the head's rows of this rank."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        self.weight = torch.empty(0)
        self.cache: gkd.cache.EmbeddingReader | None = None

    @torch.no_grad()
    def features(self, images: Tensor, samples: Tensor, flipped: Tensor) -> Tensor:
        """[B, E] of images [B, 3, H, W] and where they are from."""
        if self.cache is not None:
            found = self.cache.read(samples.cpu(), flipped.int().cpu())
            return found.to(images.device, non_blocking=True)
        embeddings: Tensor = self.network(images)
        return embeddings


def fingerprint(network: nn.Module, photographs: Photographs) -> str:
    """Of the weights, and of the data as far as their number and a thousand labels tell."""
    import gkd.cache

    some = torch.linspace(0, len(photographs) - 1, min(1000, len(photographs))).long().tolist()
    labels = torch.tensor([photographs.source.label(k) for k in some])
    data = {"images": torch.tensor(len(photographs)), "labels": labels}
    name: str = gkd.cache.fingerprint({**network.state_dict(), **data})
    return name


def fill_cache(
    folder: Path, network: nn.Module, photographs: Photographs, device: torch.device,
    dimension: int, workers: int, progress: bool,
) -> gkd.cache.EmbeddingReader:  # fmt: skip
    """Both views of every image, float16; what is there already is not made again."""
    import gkd.cache

    name = fingerprint(network, photographs)
    options = {"dimension": dimension, "teacher": name}
    mine = torch.arange(ranks.rank(), len(photographs), ranks.count())
    views = torch.arange(2)
    with gkd.cache.EmbeddingWriter(folder, writer=ranks.rank(), **options) as writer:
        todo = mine[writer.missing(mine[:, None], views).any(1)]
        for samples, embeddings in embeddings_of(
            network, photographs, todo, device, workers, progress and ranks.rank() == 0
        ):
            # Lengths are not needed, and float16 has no room for those of some networks.
            unit = nn.functional.normalize(embeddings, dim=-1)
            writer.write(samples[:, None], unit.half(), views=views)
    ranks.barrier()
    return gkd.cache.EmbeddingReader(folder, **options)


@torch.no_grad()
def embeddings_of(
    network: nn.Module, photographs: Photographs, samples: Tensor, device: torch.device,
    workers: int, progress: bool,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Samples [B], and float32 embeddings of them and their mirror images [B, 2, E]."""
    network.eval()
    dtype = next(network.parameters()).dtype
    parts = [[(k, False) for k in part.tolist()] for part in samples.split(_AT_ONCE)]
    if not len(samples):
        return
    found = DataLoader(photographs, batch_sampler=parts, num_workers=workers)
    for pixels, _, index, _ in tqdm(found, desc="embed", unit="batch", disable=not progress):
        images = to_input(pixels.to(device)).to(dtype)
        both = torch.cat([images, images.flip(3)])
        yield index, network(both).float().unflatten(0, (2, -1)).transpose(0, 1)


def centers(
    teacher: Teacher, photographs: Photographs, device: torch.device, workers: int, progress: bool,
) -> Tensor:  # fmt: skip
    """[C, E]: the centre of each class's embeddings, an image's and its mirror image's added up.

    For teachers that were published without theirs, and for data with other people in it. From the
    cache, if there is one.
    """
    everything = torch.arange(len(photographs))
    if teacher.cache is not None:
        cache, views = teacher.cache, torch.arange(2)
        parts = tqdm(everything.split(_AT_ONCE), desc="centres", disable=not progress)
        found = ((part, cache.read(part[:, None], views).float()) for part in parts)
    else:
        found = embeddings_of(teacher.network, photographs, everything, device, workers, progress)
    made: gkd.ClassCenters | None = None
    for index, both in found:
        made = made or gkd.ClassCenters(photographs.classes, both.shape[-1])
        labels = torch.tensor([photographs.source.label(k) for k in index.tolist()])
        made.add(both.sum(1).cpu(), labels)
    assert made is not None, "no images"
    weight: Tensor = made.centers()
    return weight
