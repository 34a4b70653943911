"""What both readers do: where each row is, and maps of files that each process opens for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _files, _manifest
from ._keys import Index, Integers, Keys, Numbers, Runs, named, tensor
from ._manifest import Manifest

Columns = TypeVar("Columns")


def index_of(name: str, paths: Sequence[Path], schema: pa.Schema, word: str) -> Index:
    """Of all batches, each of which is opened and checked."""
    found = []
    for number, path in enumerate(paths):
        rows = _files.read(name, path, schema)
        samples, parts = (rows.column(x).to_numpy(zero_copy_only=True) for x in ("sample", word))
        found.append(Runs.of_rows(samples, parts, number))
    return Index(Runs.joined(found))


class Reader(Generic[Columns]):
    """A cache as it was when it was opened; what writers add later is not seen."""

    word: ClassVar[str] = "part"

    def __init__(self, name: str, directory: Path, manifest: Manifest, schema: pa.Schema) -> None:
        self._name, self._manifest, self._schema = name, manifest, schema
        self.directory = directory
        self._paths = [batch.path for batch in _files.batches(directory)]
        self._index = index_of(name, self._paths, schema, self.word)
        self._open: dict[int, Columns] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned gets the index, and maps the files for itself.
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """How many rows there are."""
        return self._index.rows

    @property
    def settings(self) -> Manifest:
        """What the cache was made with, by name."""
        return dict(self._manifest)

    def keys(self) -> tuple[Tensor, Tensor]:
        """int64 samples and int32 parts of all rows, sorted."""
        rows = self._index.runs.expanded()
        return torch.from_numpy(rows.sample), torch.from_numpy(rows.first.astype(np.int32))

    def _missing(self, samples: Numbers, parts: Numbers) -> Tensor:
        keys = Keys.of(self._name, samples, parts, self.word)
        return tensor((self._index.find(keys.samples, keys.parts)[0] < 0).reshape(keys.shape))

    def _locate(self, samples: Numbers, parts: Numbers) -> tuple[Keys, Integers, Integers]:
        """Keys, and the file and row of each.

        Raises:
            KeyError: naming keys that are not there.
        """
        keys = Keys.of(self._name, samples, parts, self.word)
        files, rows = self._index.find(keys.samples, keys.parts)
        if (files < 0).any():
            lost = keys.chosen(np.flatnonzero(files < 0))
            raise KeyError(
                f"{self._name}: {len(lost.samples)} of {len(files)} rows are not in "
                f"{self.directory}: {named(self.word, lost.samples, lost.parts)}"
            )
        return keys, files, rows

    def _by_file(self, files: Integers) -> Iterator[tuple[Columns, NDArray[Any]]]:
        """The columns of each file that is named, and the places that name it."""
        order = np.argsort(files, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(files[order])) + 1):
            if len(places):
                yield self._columns_of(int(files[places[0]])), places

    def _columns_of(self, file: int) -> Columns:
        if self._process != os.getpid():  # a fork: Arrow's objects stay the parent's
            self._open, self._process = {}, os.getpid()
        if file not in self._open:
            rows = _files.read(self._name, self._paths[file], self._schema)
            self._open[file] = self._view(rows)
        return self._open[file]

    def _view(self, rows: pa.RecordBatch) -> Columns:
        """A batch's columns as arrays that share its map."""
        raise NotImplementedError


def opened(
    name: str, directory: str | PathLike[str], kind: str, asked: Manifest
) -> tuple[Path, Manifest]:
    """The folder and its manifest.

    Raises:
        FileNotFoundError: it is no cache; ValueError: of another kind, format or setting.
    """
    path = Path(directory)
    manifest = _manifest.load(name, path, kind)
    _manifest.compare(name, path, manifest, asked)
    return path, manifest


def empty(shape: Sequence[int], dtype: torch.dtype, pin_memory: bool) -> Tensor:
    """A CPU tensor to fill."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=pin_memory)
