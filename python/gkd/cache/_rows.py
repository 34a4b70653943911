"""Rows of groups as arrays: checked, joined, and gathered in any order without a loop over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..teacher import TeacherGroup
from ._dtypes import Dtype
from ._keys import Integers, Keys, named


class Rows(NamedTuple):
    """A TeacherGroup in numpy, of a tensor's memory or of a mapped file's."""

    indptr: Integers  # int32 in a file
    indices: NDArray[np.int32]
    logits: NDArray[Any]
    rest: NDArray[np.float64]


def spread(starts: Integers, sizes: Integers) -> Integers:
    """starts[0], starts[0] + 1, ... (sizes[0] of them), starts[1], ...: places of all elements."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def of_group(name: str, group: TeacherGroup, dtype: Dtype, rows: int) -> Rows:
    """The group on the CPU.

    Raises:
        TypeError: what is no TeacherGroup, or another dtype.
        ValueError: shapes that do not fit each other or ``rows``.
    """
    if not isinstance(group, TeacherGroup):
        raise TypeError(f"{name}: group must be a gkd.TeacherGroup, got {type(group).__name__}")
    wanted = {
        "indptr": ((torch.int64,), rows + 1),
        "indices": ((torch.int32,), len(group.logits)),
        "logits": ((dtype.torch,), len(group.logits)),
        "rest": ((torch.float64, torch.float32), rows),
    }
    for field, (kinds, length) in wanted.items():
        value: Tensor = getattr(group, field)
        if value.dtype not in kinds:
            allowed = " or ".join(map(str, kinds))
            raise TypeError(f"{name}: {field} must be {allowed}, got {value.dtype}")
        if list(value.shape) != [length]:
            raise ValueError(f"{name}: {field} must be [{length}], got {list(value.shape)}")
    indptr, indices, logits, rest = (x.detach().cpu() for x in group)
    return Rows(
        indptr.contiguous().numpy(),
        indices.contiguous().numpy(),
        dtype.array(logits),
        rest.double().contiguous().numpy(),
    )


def fault(rows: Rows, num_classes: int, dtype: Dtype) -> tuple[str, int] | None:
    """What is wrong with the values, and in which row; None where nothing is."""
    indptr, indices, logits, rest = rows
    sizes = np.diff(indptr)
    if indptr[0] != 0 or indptr[-1] != len(indices) or (sizes < 0).any():
        row = int(np.flatnonzero(sizes < 0)[0]) if (sizes < 0).any() else 0
        return "indptr must ascend from 0 to the number of indices", row

    def row_of(wrong: NDArray[np.bool_]) -> int:
        return int(np.searchsorted(indptr, np.flatnonzero(wrong)[0], side="right")) - 1

    outside = (indices < 0) | (indices >= num_classes)
    if outside.any():
        return f"indices must be in [0, {num_classes}), got {indices[outside][0]}", row_of(outside)
    # An element that begins a row follows nothing.
    first = np.zeros(len(indices) + 1, dtype=bool)
    first[indptr] = True
    step = np.diff(indices.astype(np.int64), prepend=-1)
    stays = (step <= 0) & ~first[:-1]
    if stays.any():
        twice = bool((step[stays] == 0)[0])
        index = indices[stays][0]
        text = (
            f"class {index} is twice" if twice else f"indices must ascend, got {index} after more"
        )
        return text, row_of(stays)
    values = dtype.floats(logits)
    invalid = np.isnan(values) | (values == np.inf)
    if invalid.any():
        return "logits must be neither NaN nor +inf", row_of(invalid)
    wrong = np.isnan(rest) | (rest == np.inf)
    if wrong.any():
        return "rest must be neither NaN nor +inf", int(np.flatnonzero(wrong)[0])
    return None


def check(name: str, rows: Rows, num_classes: int, dtype: Dtype, keys: Keys, word: str) -> None:
    """ValueError naming the first row with a `fault`."""
    found = fault(rows, num_classes, dtype)
    if found is not None:
        text, row = found
        key = named(word, keys.samples[row : row + 1], keys.parts[row : row + 1])
        raise ValueError(f"{name}: {text} (row {row}: {key})")


def extents(name: str, rows: Rows, which: NDArray[Any]) -> tuple[Integers, Integers]:
    """Where each of these rows of a file begins, and its size.

    Raises:
        ValueError: a place outside the file, which only damage can name.
    """
    starts = rows.indptr[which].astype(np.int64)
    sizes = rows.indptr[which + 1] - starts
    if ((starts < 0) | (sizes < 0) | (starts + sizes > len(rows.indices))).any():
        raise ValueError(f"{name}: a file is damaged: python -m gkd.cache verify names it")
    return starts, sizes


def chosen(rows: Rows, which: NDArray[Any]) -> Rows:
    """Some rows, as copies."""
    starts, sizes = rows.indptr[which], np.diff(rows.indptr)[which]
    places = spread(starts, sizes)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return Rows(indptr, rows.indices[places], rows.logits[places], rows.rest[which])


def schema_fields(dtype: Dtype) -> list[pa.Field]:
    """group: a list of (class, logit) pairs, whose parts lie in arrays of their own; rest."""
    pair = pa.struct([pa.field("class", pa.int32(), nullable=False), dtype.field("logit")])
    return [
        pa.field("group", pa.list_(pa.field("item", pair, nullable=False)), nullable=False),
        pa.field("rest", pa.float64(), nullable=False),
    ]


def to_arrow(name: str, pieces: list[Rows], dtype: Dtype) -> list[pa.Array]:
    """The columns of `schema_fields`.

    Raises:
        ValueError: more classes than a batch can count.
    """
    sizes = np.concatenate([np.diff(x.indptr) for x in pieces])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if offsets[-1] >= 2**31:
        raise ValueError(f"{name}: {offsets[-1]} classes in one batch: write fewer rows at a time")
    group, rest = schema_fields(dtype)
    pair = group.type.value_type
    values = [
        pa.array(np.concatenate([x.indices for x in pieces]), pa.int32()),
        pa.array(np.concatenate([x.logits for x in pieces]), dtype.arrow),
    ]
    pairs = pa.StructArray.from_arrays(values, fields=[pair.field(0), pair.field(1)])
    offsets = pa.array(offsets.astype(np.int32))
    return [
        pa.ListArray.from_arrays(offsets, pairs, type=group.type),
        pa.array(np.concatenate([x.rest for x in pieces]), rest.type),
    ]


def from_arrow(rows: pa.RecordBatch) -> Rows:
    """The same as arrays that share the batch's memory."""
    group = rows.column("group")
    pairs = group.values
    arrays = (group.offsets, pairs.field(0), pairs.field(1), rows.column("rest"))
    return Rows(*(x.to_numpy(zero_copy_only=True) for x in arrays))
