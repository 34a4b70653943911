"""Training images: a .rec file, or a folder per identity. Batches that every rank agrees on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .images import SIZE, decode
from .records import Records

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"}


class Source(Protocol):
    """Labels and image files by position."""

    identities: int | None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[int, bytes]: ...
    def label(self, index: int) -> int: ...
    def described(self, index: int) -> str: ...


class Folders:
    """One folder of images per identity; labels are the folders' places in the list."""

    def __init__(self, folders: list[Path]) -> None:
        self.identities: int | None = len(folders)
        self.files = [(k, file) for k, folder in enumerate(folders) for file in images_of(folder)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        label, path = self.files[index]
        return label, path.read_bytes()

    def label(self, index: int) -> int:
        return self.files[index][0]

    def described(self, index: int) -> str:
        return str(self.files[index][1])


def folders_of(root: Path) -> list[Path]:
    """Those that have images, in order of name.

    Raises:
        ValueError: there is none.
    """
    if not root.is_dir():
        raise ValueError(f"data = {str(root)!r}: no such folder")
    found = [p for p in sorted(root.iterdir()) if p.is_dir() and images_of(p)]
    if not found:
        raise ValueError(f"{root}: neither a train.rec nor folders of images, one per identity")
    return found


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def open_source(path: Path) -> Source:
    """A .rec file, a folder with train.rec in it, a folder per identity, or a list of such."""
    if path.suffix == ".rec":
        return Records(path)
    if (path / "train.rec").exists():
        return Records(path / "train.rec")
    if path.suffix == ".txt":
        return Folders([Path(line) for line in path.read_text().splitlines()])
    return Folders(folders_of(path))


def count_classes(source: Source) -> int:
    """What the source says, else the largest label and one, for which all labels are read."""
    if source.identities is not None:
        return source.identities
    return 1 + max(source.label(index) for index in range(len(source)))


#: uint8 [B, H, W, 3], labels [B], samples [B], and which are to be mirrored, bool [B].
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Photographs(Dataset[tuple[Tensor, int, int, bool]]):
    """Decoded images; an item is a position, and whether to mirror it."""

    def __init__(self, source: Source, classes: int, size: int = SIZE) -> None:
        self.source, self.classes, self.size = source, classes, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: tuple[int, bool]) -> tuple[Tensor, int, int, bool]:
        index, flipped = item
        label, data = self.source[index]
        try:
            pixels = torch.from_numpy(np.array(decode(data, self.size)))
        except ValueError as error:
            raise ValueError(f"{self.source.described(index)}: {error}") from None
        if label >= self.classes:
            raise ValueError(
                f"{self.source.described(index)}: label {label} of {self.classes} classes"
            )
        return pixels, label, index, flipped


class Batches(Sampler[list[tuple[int, bool]]]):
    """This rank's part of each batch of an epoch: what the ranks have together is the same for any
    number of them, as is which images are mirrored. A last batch that is not full is left out.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if batch % ranks:
            raise ValueError(f"a batch of {batch} does not divide into {ranks} ranks")
        if count < batch:
            raise ValueError(f"{count} images do not fill a batch of {batch}")
        self.count, self.batch, self.seed = count, batch, seed
        self.rank, self.size = rank, batch // ranks
        self.steps = count // batch  #: of an epoch
        self.epoch, self.first = 0, 0  #: where the next pass begins

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator)
        flips = torch.randint(2, (self.count,), generator=generator).bool()
        for step in range(self.first, self.steps):
            start = step * self.batch + self.rank * self.size
            part = slice(start, start + self.size)
            yield list(zip(order[part].tolist(), flips[part].tolist(), strict=True))


def loader(photographs: Photographs, batches: Batches, workers: int, pin: bool) -> DataLoader:  # type: ignore[type-arg]
    """Batches as `Batch`es."""
    return DataLoader(
        photographs, batch_sampler=batches, num_workers=workers, pin_memory=pin,
        persistent_workers=workers > 0,
    )  # fmt: skip
