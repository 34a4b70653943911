"""gkd.cache.GroupWriter and GroupReader: one row of a TeacherGroup per sample and part."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from typing_extensions import Unpack

from .._settings import LossSettings
from ..teacher import TeacherGroup, grouping_of
from . import _rows
from ._asked import Asked, asked_of
from ._dtypes import named as dtype_named
from ._keys import Keys, Numbers
from ._manifest import FORMAT, Manifest
from ._reader import Reader, empty, opened
from ._rows import Rows
from ._writer import BATCH_BYTES, Writer

KIND = "gkd.teacher_groups"


def schema_of(manifest: Manifest) -> pa.Schema:
    """sample int64, part int32, group, rest."""
    dtype = dtype_named(KIND, manifest["dtype"])
    return pa.schema(
        [
            pa.field("sample", pa.int64(), nullable=False),
            pa.field("part", pa.int32(), nullable=False),
            *_rows.schema_fields(dtype),
        ],
        metadata={"gkd": json.dumps(manifest)},
    )


class GroupWriter(Writer):
    """Keeps a teacher's groups on disk: all that a loss without Secondary-KD needs of it.

    For heads whose groups are small beside their classes, those of language models first. Rows wait
    in memory until they are a batch, and a batch is in the folder whole or not at all. Opened on a
    folder that has rows, a writer goes on where a killed one ended: `missing` says what is left.

    Args:
        directory: the cache's folder, which is made where there is none.
        num_classes: C.
        threshold: that the groups were made with, as are the next three; as in `gkd.loss`.
        group_size: None for none.
        temperature: T.
        group_temperature: T_g; T unless given.
        dtype: of the logits: float16, bfloat16, float32 or float64.
        teacher: which teacher, as `gkd.cache.fingerprint` or any text says.
        writer: the number of this process, where several write to one folder at once.
        batch_bytes: what waits in memory until it is a file; a kill loses no more than that.

    Raises:
        ValueError: a setting that does not fit, a cache there with other settings, or another
            process that is this writer.
        TypeError: a dtype that is not supported.

    Examples:
        >>> import tempfile
        >>> folder, settings = tempfile.mkdtemp(), {"group_size": 3, "temperature": 2.0}
        >>> with gkd.cache.GroupWriter(folder, num_classes=50, **settings) as writer:
        ...     for samples in torch.arange(12).split(4):
        ...         logits = torch.randn(4, 50).half()
        ...         group = gkd.teacher_group(logits, **settings)
        ...         written = writer.write(samples, group)
        >>> gkd.cache.GroupReader(folder, **settings).read([7, 2]).indptr
        tensor([0, 3, 6])
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        num_classes: int,
        threshold: float | None = None,
        group_size: int | None = None,
        temperature: float = 4.0,
        group_temperature: float | None = None,
        dtype: torch.dtype = torch.float16,
        teacher: str | None = None,
        writer: int = 0,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        name = "gkd.cache.GroupWriter"
        self._dtype = dtype_named(name, dtype)
        self._num_classes = int(num_classes)
        if not 1 <= self._num_classes <= 2**31:
            raise ValueError(f"{name}: num_classes must be in [1, 2^31], got {num_classes}")
        grouping = grouping_of(name, threshold, group_size, temperature, group_temperature)
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "num_classes": self._num_classes,
            **grouping._asdict(),
            "dtype": self._dtype.name,
            "teacher": teacher,
        }
        super().__init__(name, directory, manifest, schema_of(manifest), writer, batch_bytes)

    def missing(self, samples: Numbers, parts: Numbers = 0) -> Tensor:
        """bool, of the shape that samples and parts broadcast to: True where no row is there."""
        return self._missing(samples, parts)

    def write(self, samples: Numbers, group: TeacherGroup, parts: Numbers = 0) -> int:
        """Keeps one row per key; keys that are there already are passed over.

        Args:
            samples: integers, such as an int64 tensor [B].
            group: as many rows as samples and parts broadcast to, in row-major order; on any
                device, with logits of the cache's dtype.
            parts: integers that fit in an int32: views, or tokens' numbers; 0 unless given.

        Returns:
            How many rows were new.

        Raises:
            ValueError: naming the row: indices out of range, twice or not in order, an indptr that
                does not ascend, NaN; or a key that is given twice.
            TypeError: another dtype.
        """
        keys = Keys.of(self._name, samples, parts, self.word)
        rows = _rows.of_group(self._name, group, self._dtype, len(keys.samples))
        _rows.check(self._name, rows, self._num_classes, self._dtype, keys, self.word)
        new = self._new_rows(keys)
        # A copy: the caller may write its next batch into the same memory.
        kept = np.arange(len(keys.samples)) if new is None else new
        rows, keys = _rows.chosen(rows, kept), keys.chosen(kept)
        return self._add(keys, rows, sum(array.nbytes for array in rows))

    def _columns(self, rows: list[Any]) -> list[pa.Array]:
        return _rows.to_arrow(self._name, rows, self._dtype)


class GroupReader(Reader[Rows]):
    """A teacher's groups by sample and part, as `gkd.cache.GroupWriter` kept them.

    Files are mapped, by each process for itself, so that one reader serves all workers of a
    DataLoader: have its ``collate_fn`` call `read` with a batch's sample numbers. A TeacherGroup is
    a named tuple, which a DataLoader with ``pin_memory=True`` pins.

    The other keywords are settings of `gkd.loss`, as they will be used. A temperature stands for
    T_g too, and threshold and group size for each other, where only one is given. What needs more
    than the groups is refused: ``rank_by="student"``, and a ``secondary_weight``.

    Args:
        directory: the cache's folder.
        num_classes: what C has to be; not compared unless given, like all others.
        dtype: what the logits' dtype has to be.
        teacher: what the teacher has to be.

    Raises:
        FileNotFoundError: the folder is no cache.
        ValueError: other settings, another version of the format, or a file that is truncated.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        num_classes: int | None = None,
        dtype: torch.dtype | None = None,
        teacher: str | None = None,
        **settings: Unpack[LossSettings],
    ) -> None:
        name = "gkd.cache.GroupReader"
        asked = asked_of(name, Asked(num_classes, dtype, teacher), settings)
        path, manifest = opened(name, directory, KIND, asked)
        self._dtype = dtype_named(name, manifest["dtype"])
        super().__init__(name, path, manifest, schema_of(manifest))

    def missing(self, samples: Numbers, parts: Numbers = 0) -> Tensor:
        """bool, of the shape that samples and parts broadcast to: True where no row is there."""
        return self._missing(samples, parts)

    def read(
        self, samples: Numbers, parts: Numbers = 0, *, pin_memory: bool = False
    ) -> TeacherGroup:
        """The rows of these keys, in this order.

        Args:
            samples: integers, such as an int64 tensor [B].
            parts: integers that broadcast with them, to B rows in row-major order; 0 unless given.
            pin_memory: whether the result is page-locked; in a DataLoader's workers leave that to
                the DataLoader.

        Returns:
            A `gkd.TeacherGroup` on the CPU.

        Raises:
            KeyError: naming keys that are not there.
        """
        _, files, rows = self._locate(samples, parts)
        count = len(files)
        starts, sizes = np.empty(count, np.int64), np.empty(count, np.int64)
        indptr = empty([count + 1], torch.int64, pin_memory)
        rest = empty([count], torch.float64, pin_memory)
        found = list(self._by_file(files))
        for columns, places in found:
            own = rows[places]
            starts[places], sizes[places] = _rows.extents(self._name, columns, own)
            rest.numpy()[places] = columns.rest[own]
        indptr[0] = 0
        ends = np.cumsum(sizes, out=indptr.numpy()[1:])
        total = int(ends[-1]) if count else 0
        indices = empty([total], torch.int32, pin_memory)
        logits = empty([total], self._dtype.torch, pin_memory)
        outputs = (indices.numpy(), self._dtype.array(logits))
        for columns, places in found:
            _copy(columns, starts[places], sizes[places], outputs, ends[places] - sizes[places])
        return TeacherGroup(indptr, indices, logits, rest)

    def _view(self, rows: pa.RecordBatch) -> Rows:
        return _rows.from_arrow(rows)


def _copy(columns: Rows, starts: Any, sizes: Any, outputs: tuple[Any, Any], to: Any) -> None:
    """Elements of one file's rows to where they belong; in one piece where they are one."""
    source: Any
    target: Any
    if (starts[1:] == starts[:-1] + sizes[:-1]).all() and (to[1:] == to[:-1] + sizes[:-1]).all():
        length = int(sizes.sum())
        source = slice(starts[0], starts[0] + length)
        target = slice(to[0], to[0] + length)
    else:
        source, target = _rows.spread(starts, sizes), _rows.spread(to, sizes)
    outputs[0][target] = columns.indices[source]
    outputs[1][target] = columns.logits[source]
