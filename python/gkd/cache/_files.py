"""Batches as files: whole or not there, and named by what is in them.

``00002-000017-<digest>.arrow`` is batch 17 of writer 2. The digest is the first 32 hexadecimal
digits of the SHA-256 of the file's bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

_NAME = re.compile(r"(\d{5,})-(\d{6,})-([0-9a-f]{32})\.arrow")
_CHUNK = 2**20


class Batch(NamedTuple):
    """A complete batch's file."""

    path: Path
    writer: int
    number: int
    digest: str


def batches(directory: Path) -> list[Batch]:
    """The complete ones, in order of writer and number."""
    found = []
    for entry in os.scandir(directory):
        if match := _NAME.fullmatch(entry.name):
            path = directory / entry.name
            found.append(Batch(path, int(match[1]), int(match[2]), match[3]))
    return sorted(found, key=lambda batch: batch[1:])


def digest_of(path: Path) -> str:
    """Of a file's bytes as they are now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:32]


class _Hashed(io.RawIOBase):
    """Writes to a file, and hashes what is meant to be there rather than what is read back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()


def write(directory: Path, writer: int, number: int, rows: pa.RecordBatch) -> Batch:
    """One batch: under a name that no reader sees, until all of it is on the disk."""
    hidden = directory / f"{_hidden(writer)}{number}"
    with _Hashed(hidden) as file, pa.ipc.new_file(file, rows.schema) as stream:
        stream.write_batch(rows)
    digest = file.digest.hexdigest()[:32]
    path = directory / f"{writer:05d}-{number:06d}-{digest}.arrow"
    os.rename(hidden, path)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name
    finally:
        os.close(folder)
    return Batch(path, writer, number, digest)


def read(name: str, path: Path, schema: pa.Schema) -> pa.RecordBatch:
    """A batch that maps its file: nothing of it is read before it is used.

    Raises:
        ValueError: the file was cut off or damaged, or belongs to another cache.
    """
    try:
        # Closed at once, or a cache of many batches would run out of file descriptors. The mapping
        # lives as long as the arrays.
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            found, number = file.schema, file.num_record_batches
            rows = file.get_batch(0) if number == 1 else None
        if rows is not None:
            rows.validate()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # not the file's fault: no right to read it, too many open files
        raise ValueError(
            f"{name}: {path} is truncated or damaged ({str(error).splitlines()[0]}); "
            "python -m gkd.cache verify names every such file"
        ) from None
    if rows is None:
        raise ValueError(f"{name}: {path} has {number} record batches, not one")
    if not found.equals(schema, check_metadata=True):
        raise ValueError(f"{name}: {path} has other columns or settings than its cache")
    return rows


def _hidden(writer: int) -> str:
    return f".writing-{writer:05d}-"


def leftovers(directory: Path, writer: int | None = None) -> list[Path]:
    """Beginnings of batches, of a writer that was killed or is at work."""
    return sorted(directory.glob(f".writing-{'*' if writer is None else f'{writer:05d}-*'}"))


class Lock:
    """One process at a time is writer number ``writer``; the lock dies with its process."""

    # The system's own lock does not stop its own process. With that process's number, which a
    # forked one does not have.
    _held: set[tuple[Path, int, int]] = set()

    def __init__(self, name: str, directory: Path, writer: int) -> None:
        self._key = (directory.resolve(), writer, os.getpid())
        taken = ValueError(
            f"{name}: another writer {writer} is at work in {directory}; give each process a "
            "number of its own"
        )
        # Before the file is opened: to close it again would end the lock that is held.
        if self._key in self._held:
            raise taken
        self._file = (directory / f".lock-{writer:05d}").open("a")
        try:
            # Not flock(): children of a killed process would go on holding that one.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.close()
            raise taken from None
        self._held.add(self._key)

    def release(self) -> None:
        self._held.discard(self._key)
        self._file.close()
