"""gkd.cache.EmbeddingWriter and EmbeddingReader: one vector per sample and view."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._dtypes import named as dtype_named
from ._keys import Keys, Numbers
from ._keys import named as keys_named
from ._manifest import FORMAT, Manifest
from ._reader import Reader, empty, opened
from ._writer import BATCH_BYTES, Writer

KIND = "gkd.embeddings"
_DTYPES = ("float16", "bfloat16", "float32")


def schema_of(manifest: Manifest) -> pa.Schema:
    """sample int64, view int32, embedding [D]."""
    item = dtype_named(KIND, manifest["dtype"]).field("item")
    return pa.schema(
        [
            pa.field("sample", pa.int64(), nullable=False),
            pa.field("view", pa.int32(), nullable=False),
            pa.field("embedding", pa.list_(item, manifest["dimension"]), nullable=False),
        ],
        metadata={"gkd": json.dumps(manifest)},
    )


def values_of(rows: pa.RecordBatch) -> NDArray[Any]:
    """All of a batch's numbers, flat, as an array that shares its memory."""
    values: NDArray[Any] = rows.column("embedding").values.to_numpy(zero_copy_only=True)
    return values


class EmbeddingWriter(Writer):
    """Keeps a teacher's embeddings on disk, from which its head makes the logits again.

    For heads too large for their logits to be kept, those of face recognisers first: a class costs
    nothing, and any settings of the loss can be had, ranking by the student among them. Opened on
    a folder that has rows, a writer goes on where a killed one ended: `missing` says what is left.

    Args:
        directory: the cache's folder, which is made where there is none.
        dimension: D, of the embeddings.
        dtype: float16, bfloat16 or float32.
        teacher: which teacher, as `gkd.cache.fingerprint` or any text says.
        writer: the number of this process, where several write to one folder at once.
        batch_bytes: what waits in memory until it is a file; a kill loses no more than that.

    Raises:
        ValueError: the folder is a cache with other settings, or another process is this writer.
        TypeError: a dtype that is not supported.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with gkd.cache.EmbeddingWriter(folder, dimension=4) as writer:
        ...     for first in range(0, 8, 4):  # an image, and its mirror image as view 1
        ...         embeddings = torch.randn(4, 2, 4).half()
        ...         samples = torch.arange(first, first + 4)
        ...         written = writer.write(samples[:, None], embeddings, views=torch.arange(2))
        >>> gkd.cache.EmbeddingReader(folder).read([5, 2], views=[0, 1]).shape
        torch.Size([2, 4])
    """

    word = "view"

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        dimension: int,
        dtype: torch.dtype = torch.float16,
        teacher: str | None = None,
        writer: int = 0,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        name = "gkd.cache.EmbeddingWriter"
        self._dtype = dtype_named(name, dtype, _DTYPES)
        if int(dimension) < 1:
            raise ValueError(f"{name}: dimension must be >= 1, got {dimension}")
        self._dimension = int(dimension)
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "dimension": self._dimension,
            "dtype": self._dtype.name,
            "teacher": teacher,
        }
        super().__init__(name, directory, manifest, schema_of(manifest), writer, batch_bytes)

    def missing(self, samples: Numbers, views: Numbers = 0) -> Tensor:
        """bool, of the shape that samples and views broadcast to: True where no row is there."""
        return self._missing(samples, views)

    def write(self, samples: Numbers, embeddings: Tensor, views: Numbers = 0) -> int:
        """Keeps one embedding per key; keys that are there already are passed over.

        Args:
            samples: integers, such as an int64 tensor [B].
            embeddings: [..., D] of the cache's dtype, on any device; [...] is the shape that
                samples and views broadcast to.
            views: integers; 0 unless given.

        Returns:
            How many rows were new.

        Raises:
            ValueError: a shape that does not fit, NaN or an infinity, or a key that is given twice.
            TypeError: another dtype.
        """
        keys = Keys.of(self._name, samples, views, self.word)
        shape = [*keys.shape, self._dimension]
        if list(embeddings.shape) != shape:
            raise ValueError(
                f"{self._name}: embeddings must be {shape}, got {list(embeddings.shape)}"
            )
        if embeddings.dtype != self._dtype.torch:
            raise TypeError(
                f"{self._name}: embeddings must be {self._dtype.name}, got {embeddings.dtype}"
            )
        rows = embeddings.detach().cpu().reshape(-1, self._dimension)
        wrong = ~torch.isfinite(rows).all(1)
        if bool(wrong.any()):
            where = keys.chosen(np.flatnonzero(wrong.numpy()))
            raise ValueError(
                f"{self._name}: embeddings hold NaN or an infinity: "
                f"{keys_named(self.word, where.samples, where.parts)}"
            )
        new = self._new_rows(keys)
        if new is not None:
            keys, rows = keys.chosen(new), rows[torch.from_numpy(new)]
        # A copy: the caller may write its next batch into the same memory.
        return self._add(keys, rows.clone(), rows.numel() * rows.element_size())

    def _columns(self, rows: list[Any]) -> list[pa.Array]:
        values = pa.array(self._dtype.array(torch.cat(rows)).ravel(), self._dtype.arrow)
        field = self._schema.field("embedding")
        return [pa.FixedSizeListArray.from_arrays(values, type=field.type)]


class EmbeddingReader(Reader[NDArray[Any]]):
    """Embeddings by sample and view, as `gkd.cache.EmbeddingWriter` kept them.

    Files are mapped, by each process for itself, so that one reader serves all workers of a
    DataLoader. The teacher's logits never exist: ``gkd.training_linear_loss(student_features,
    student_weight, reader.read(samples).to(student_features), teacher_weight, target, ...)`` makes
    them of some rows at a time, from the teacher's head [C, D].

    Args:
        directory: the cache's folder.
        dimension: what D has to be; not compared unless given, like the others.
        dtype: what the dtype has to be.
        teacher: what the teacher has to be.

    Raises:
        FileNotFoundError: the folder is no cache.
        ValueError: other settings, another version of the format, or a file that is truncated.
    """

    word = "view"

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        dimension: int | None = None,
        dtype: torch.dtype | None = None,
        teacher: str | None = None,
    ) -> None:
        name = "gkd.cache.EmbeddingReader"
        wanted = None if dtype is None else dtype_named(name, dtype, _DTYPES).name
        asked = {"dimension": dimension, "dtype": wanted, "teacher": teacher}
        asked = {field: value for field, value in asked.items() if value is not None}
        path, manifest = opened(name, directory, KIND, asked)
        self._dtype = dtype_named(name, manifest["dtype"])
        super().__init__(name, path, manifest, schema_of(manifest))

    def missing(self, samples: Numbers, views: Numbers = 0) -> Tensor:
        """bool, of the shape that samples and views broadcast to: True where no row is there."""
        return self._missing(samples, views)

    def read(self, samples: Numbers, views: Numbers = 0, *, pin_memory: bool = False) -> Tensor:
        """The embeddings of these keys, in this order.

        Args:
            samples: integers, such as an int64 tensor [B].
            views: integers that broadcast with them; 0 unless given.
            pin_memory: whether the result is page-locked; in a DataLoader's workers leave that to
                the DataLoader.

        Returns:
            [..., D] of the cache's dtype.

        Raises:
            KeyError: naming keys that are not there.
        """
        keys, files, rows = self._locate(samples, views)
        dimension = self._manifest["dimension"]
        found = empty([len(files), dimension], self._dtype.torch, pin_memory)
        array = self._dtype.array(found)
        for columns, places in self._by_file(files):
            array[places] = columns[rows[places]]
        return found.reshape(*keys.shape, dimension)

    def _view(self, rows: pa.RecordBatch) -> NDArray[Any]:
        return values_of(rows).reshape(-1, self._manifest["dimension"])
