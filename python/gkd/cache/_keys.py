"""Keys of rows, and where each row is: runs of consecutive keys, sorted, searched by bisection.

A key is an int64 sample and an int32 part (a view, or a token's number).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
_INT32 = np.iinfo(np.int32)


def integers(name: str, argument: str, value: object) -> Integers:
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
    def of(cls, name: str, samples: object, parts: object, word: str) -> Keys:
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

    sample: Integers
    first: Integers
    length: Integers
    file: Integers
    row: Integers

    @classmethod
    def of_rows(cls, samples: NDArray[Any], parts: NDArray[Any], file: int) -> Runs:
        """The rows of a batch, in order."""
        parts = parts.astype(np.int64, copy=False)
        follows = (samples[1:] == samples[:-1]) & (parts[1:] == parts[:-1] + 1)
        row = np.flatnonzero(np.concatenate([[True], ~follows])[: len(samples)])
        length = np.diff(np.append(row, len(samples)))
        return cls(samples[row].astype(np.int64), parts[row], length, np.full_like(row, file), row)

    @classmethod
    def joined(cls, parts: Sequence[Runs]) -> Runs:
        if not parts:
            return cls(*(np.empty(0, np.int64) for _ in cls._fields))
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def expanded(self) -> Runs:
        """One row a run."""
        index = np.repeat(np.arange(len(self.length)), self.length)
        step = np.arange(len(index)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        return Runs(
            self.sample[index],
            self.first[index] + step,
            np.ones_like(index),
            self.file[index],
            self.row[index] + step,
        )

    def chosen(self, order: NDArray[Any]) -> Runs:
        return Runs(*(column[order] for column in self))


class Index:
    """Finds keys.

    Attributes:
        runs: sorted by key; no key is twice in them.
        doubles: the rows left out for that, one a run; the row that is first in file order stays.
        rows: how many keys there are.
    """

    def __init__(self, runs: Runs) -> None:
        self._samples = np.unique(runs.sample)
        code = self._code(runs.sample, runs.first)[0]
        order = np.argsort(code, kind="stable")
        runs, code = runs.chosen(order), code[order]
        self.doubles = Runs.joined([])
        if (code[1:] < (code + runs.length)[:-1]).any():  # where any overlap, neighbours do
            single = runs.expanded()
            single = single.chosen(np.lexsort((single.row, single.file)))
            code, kept = np.unique(self._code(single.sample, single.first)[0], return_index=True)
            double = np.ones(len(single.row), dtype=bool)
            double[kept] = False
            self.doubles, runs = single.chosen(double), single.chosen(kept)
        self.runs, self._codes = runs, code
        self.rows = int(runs.length.sum())

    def _code(self, samples: Integers, parts: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        """One number a key, in order of the keys: the sample's rank above, the part below; and
        whether the sample is known. Ranks, since two keys' samples may be 2^64 apart."""
        rank = np.searchsorted(self._samples, samples)
        known = rank < len(self._samples)
        known[known] = self._samples[rank[known]] == samples[known]
        return (rank << 32) + (parts - _INT32.min), known

    def find(self, samples: Integers, parts: Integers) -> tuple[Integers, Integers]:
        """File and row of each key; file -1 where there is none."""
        if not len(self._codes):
            return np.full_like(samples, -1), np.zeros_like(samples)
        code, known = self._code(samples, parts)
        at = np.searchsorted(self._codes, code, side="right") - 1
        step = code - self._codes[at]
        found = known & (at >= 0) & (step < self.runs.length[at])
        return np.where(found, self.runs.file[at], -1), self.runs.row[at] + step


def tensor(values: NDArray[Any]) -> Tensor:
    """A copy, that torch may write to."""
    return torch.from_numpy(values.copy())
