"""What both writers do: which keys are there, rows that wait for a whole batch, batches."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from . import _files, _manifest
from ._keys import Index, Keys, Numbers, Runs, named, tensor
from ._manifest import Manifest
from ._reader import index_of

#: Bytes of a batch: much more than a disk's block, and little to compute again after a kill.
BATCH_BYTES = 2**26


class Writer:
    """One process's hand in a cache."""

    word: ClassVar[str] = "part"

    def __init__(
        self,
        name: str,
        directory: str | PathLike[str],
        manifest: Manifest,
        schema: pa.Schema,
        writer: int,
        batch_bytes: int,
    ) -> None:
        self._name, self._schema = name, schema
        self._number, self._batch_bytes = int(writer), int(batch_bytes)
        self.directory = Path(directory)
        if self._number < 0 or self._batch_bytes < 1:
            raise ValueError(f"{name}: writer must be >= 0 and batch_bytes >= 1")
        _manifest.create_or_join(name, self.directory, manifest)
        self._lock: _files.Lock | None = _files.Lock(name, self.directory, self._number)
        try:
            for path in _files.leftovers(self.directory, self._number):
                path.unlink()
            found = _files.batches(self.directory)
            # Sizes double from the last to the first, so that a key is merged a few times only.
            self._indices = [index_of(name, [batch.path for batch in found], schema, self.word)]
        except BaseException:
            self._lock.release()
            raise
        self._used = {batch.number for batch in found if batch.writer == self._number}
        self._pending: list[tuple[Keys, Any]] = []
        self._pending_bytes = 0

    def __len__(self) -> int:
        """Rows that are there, of all writers when this one was opened, and its own."""
        return sum(index.rows for index in self._indices)

    def _absent(self, keys: Keys) -> NDArray[np.bool_]:
        absent = np.ones(len(keys.samples), dtype=bool)
        for index in self._indices:
            absent &= index.find(keys.samples, keys.parts)[0] < 0
        return absent

    def _missing(self, samples: Numbers, parts: Numbers) -> Tensor:
        keys = Keys.of(self._name, samples, parts, self.word)
        return tensor(self._absent(keys).reshape(keys.shape))

    def _new_rows(self, keys: Keys) -> NDArray[Any] | None:
        """Rows that are not there yet, or None where that is all of them.

        Raises:
            ValueError: a key that is twice among them, or a writer that was closed.
        """
        if self._lock is None:
            raise ValueError(f"{self._name}: the writer is closed")
        index = Index(Runs.of_rows(keys.samples, keys.parts, 0))
        if len(index.doubles.row):
            double = named(self.word, index.doubles.sample, index.doubles.first)
            raise ValueError(f"{self._name}: given twice: {double}")
        absent = self._absent(keys)
        return None if absent.all() else np.flatnonzero(absent)

    def _add(self, keys: Keys, rows: Any, size: int) -> int:
        """Keeps rows until they are a batch; ``size`` is in bytes."""
        count = len(keys.samples)
        if count:
            self._pending.append((keys, rows))
            self._indices.append(Index(Runs.of_rows(keys.samples, keys.parts, 0)))
            while len(self._indices) > 1 and self._indices[-2].rows <= self._indices[-1].rows:
                last, before = self._indices.pop(), self._indices.pop()
                self._indices.append(Index(Runs.joined([before.runs, last.runs])))
            self._pending_bytes += size
            if self._pending_bytes >= self._batch_bytes:
                self.flush()
        return count

    def _columns(self, rows: list[Any]) -> list[pa.Array]:
        """Arrow's columns of rows as `_add` took them, after those of the keys."""
        raise NotImplementedError

    def flush(self) -> None:
        """Writes what waits as a batch, and returns when it is on the disk."""
        if not self._pending:
            return
        keys = [keys for keys, _ in self._pending]
        columns = [
            pa.array(np.concatenate([x.samples for x in keys]), pa.int64()),
            pa.array(np.concatenate([x.parts for x in keys]).astype(np.int32), pa.int32()),
            *self._columns([rows for _, rows in self._pending]),
        ]
        batch = pa.record_batch(columns, schema=self._schema)
        number = next(n for n in range(len(self._used) + 1) if n not in self._used)
        _files.write(self.directory, self._number, number, batch)
        self._used.add(number)
        self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        """`flush`, and lets another process be this writer."""
        if self._lock is not None:
            try:
                self.flush()
            finally:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
