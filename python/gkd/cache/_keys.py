"""Keys of rows, and where each row is: runs of consecutive keys, sorted, searched by bisection.

A key is an int64 sample and an int32 part (a view, or a token's number).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Integers = NDArray[np.int64]
#: Samples, parts and views as they are given: integers of any shape.
Numbers = Tensor | ArrayLike
_INT32 = np.iinfo(np.int32)


def integers(name: str, argument: str, value: Numbers) -> Integers:
    """int64, of any shape.

    Raises:
        TypeError: it holds something else than integers.
    """
    found = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if found.size == 0 and not isinstance(value, (Tensor, np.ndarray)):
        found = found.astype(np.int64)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name}: {argument} must be integers, got {found.dtype}")
    return found.astype(np.int64, copy=False)


class Keys(NamedTuple):
    """Flat, in row-major order of what was given; ``shape`` is what samples and parts make."""

    samples: Integers
    parts: Integers
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, samples: Numbers, parts: Numbers, word: str) -> Keys:
        """Samples and parts, of shapes that fit as in arithmetic.

        Raises:
            TypeError: what is not an integer; ValueError: shapes that do not fit, or a part that is
                no int32.
        """
        given = integers(name, "samples", samples)
        numbers = integers(name, f"{word}s", parts)
        if numbers.size and not (_INT32.min <= numbers.min() and numbers.max() <= _INT32.max):
            raise ValueError(f"{name}: {word}s must be int32")
        try:
            given, numbers = np.broadcast_arrays(given, numbers)
        except ValueError:
            raise ValueError(
                f"{name}: samples {list(given.shape)} and {word}s {list(numbers.shape)} do not fit"
            ) from None
        return cls(given.ravel(), numbers.ravel(), given.shape)

    def chosen(self, rows: NDArray[Any]) -> Keys:
        return Keys(self.samples[rows], self.parts[rows], ())


def named(word: str, samples: Iterable[int], parts: Iterable[int], limit: int = 5) -> str:
    """The first few keys as text."""
    found = [f"sample {s}, {word} {p}" for s, p in zip(samples, parts, strict=True)]
    return "; ".join(found[:limit]) + ("; ..." if len(found) > limit else "")


class Runs(NamedTuple):
    """Rows ``row + i`` of batch ``file``, i < length, have the keys (sample, first + i)."""

    sample: NDArray[np.int64]
    first: NDArray[np.int32]
    length: NDArray[np.int32]
    file: NDArray[np.int32]
    row: NDArray[np.int32]

    @classmethod
    def of_rows(cls, samples: NDArray[Any], parts: NDArray[Any], file: int) -> Runs:
        """The rows of a batch, in order."""
        parts = parts.astype(np.int64, copy=False)
        follows = (samples[1:] == samples[:-1]) & (parts[1:] == parts[:-1] + 1)
        row = np.flatnonzero(np.concatenate([[True], ~follows])[: len(samples)])
        length = np.diff(np.append(row, len(samples)))
        return cls._of(samples[row], parts[row], length, np.full_like(row, file), row)

    @classmethod
    def _of(cls, sample: Any, *columns: Any) -> Runs:
        return cls(sample.astype(np.int64, copy=False), *(x.astype(np.int32) for x in columns))

    @classmethod
    def joined(cls, parts: Sequence[Runs]) -> Runs:
        if not parts:
            return cls._of(*(np.empty(0, np.int64) for _ in cls._fields))
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def expanded(self) -> Runs:
        """One row a run."""
        index = np.repeat(np.arange(len(self.length)), self.length)
        ends = np.cumsum(self.length, dtype=np.int64)
        step = np.arange(len(index)) - np.repeat(ends - self.length, self.length)
        return Runs._of(
            self.sample[index],
            self.first[index] + step,
            np.ones_like(index),
            self.file[index],
            self.row[index] + step,
        )

    def chosen(self, order: NDArray[Any]) -> Runs:
        return Runs(*(column[order] for column in self))


class Index:
    """Finds keys, in 20 bytes a run and 8 a sample.

    Attributes:
        doubles: the rows left out because their keys are there already, one a run; the row that is
            first in file order stays.
        rows: how many keys there are.
    """

    def __init__(self, runs: Runs) -> None:
        self.doubles = Runs.joined([])
        runs, codes = self._sorted(runs)
        if (codes[1:] < (codes + runs.length)[:-1]).any():  # where any overlap, neighbours do
            runs = runs.expanded()
            runs, codes = self._sorted(runs.chosen(np.lexsort((runs.row, runs.file))))
            double = np.concatenate([[False], codes[1:] == codes[:-1]])
            self.doubles, runs, codes = runs.chosen(double), runs.chosen(~double), codes[~double]
        # Sample and first are in the codes.
        self._codes, self._length, self._file, self._row = codes, *runs[2:]
        self.rows = int(runs.length.sum(dtype=np.int64))

    def _sorted(self, runs: Runs) -> tuple[Runs, Integers]:
        """By key, the order of equal ones kept; and one number a key, in order of the keys: the
        sample's rank above, the part below. Ranks, since samples may be 2^64 apart."""
        sample, first = runs.sample, runs.first
        ascends = (sample[1:] > sample[:-1]) | (
            (sample[1:] == sample[:-1]) & (first[1:] >= first[:-1])
        )
        if not ascends.all():
            runs = runs.chosen(np.lexsort((first, sample)))
        new = np.concatenate([[True], runs.sample[1:] != runs.sample[:-1]])[: len(runs.sample)]
        self._samples = runs.sample[new]
        return runs, self._code(np.cumsum(new) - 1, runs.first)

    @staticmethod
    def _code(rank: Integers, parts: NDArray[Any]) -> Integers:
        return (rank << 32) + (parts.astype(np.int64) - _INT32.min)

    @property
    def runs(self) -> Runs:
        """Sorted by key; no key is twice in them."""
        sample = self._samples[self._codes >> 32]
        first = (self._codes & 0xFFFFFFFF) + _INT32.min
        return Runs(sample, first.astype(np.int32), self._length, self._file, self._row)

    def find(self, samples: Integers, parts: Integers) -> tuple[Integers, Integers]:
        """File and row of each key; file -1 where there is none."""
        if not len(self._codes):
            return np.full_like(samples, -1), np.zeros_like(samples)
        rank = np.searchsorted(self._samples, samples)
        known = rank < len(self._samples)
        known[known] = self._samples[rank[known]] == samples[known]
        code = self._code(rank, parts)
        at = np.searchsorted(self._codes, code, side="right") - 1
        step = code - self._codes[at]
        found = known & (at >= 0) & (step < self._length[at])
        return np.where(found, self._file[at], -1).astype(np.int64), self._row[at] + step


def tensor(values: NDArray[Any]) -> Tensor:
    """A copy, that torch may write to."""
    return torch.from_numpy(values.copy())
