"""MXNet's .rec and .idx files, without MXNet: `Records` reads them, `RecordWriter` writes them.

Little-endian. The .idx file is text, a line `key TAB offset` per record. At its offset, a multiple
of 4, a record is one part or several, each

    u32 magic | u32: kind << 29 | length | `length` bytes | 0 to 3 bytes of padding

Kind 0 is a whole record. Where its bytes hold the magic at a multiple of 4, it is cut there and the
magic left out: kinds 1 (first part), 2 (further ones), 3 (last). The bytes of a record are

    u32 flag | f32 label | u64 id | u64 id2 | `flag` f32 labels, if any | the image's file

InsightFace's record 0 has two labels (n1, n2) and no image: images are the keys 1 to n1 - 1, and
the keys n1 to n2 - 1 are its identities, without images too.
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xCED7230A
_MAGIC = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LONGEST = 2**29 - 1


class RecordError(ValueError):
    """A record that cannot be read; says which, and where it begins."""


class Records:
    """The images of a .rec file by position, 0 to len - 1, each a label and an image file's bytes.

    The file is mapped, so that workers share its pages, and nothing is shared that a fork breaks.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.keys, self.offsets = _index(self.path.with_suffix(".idx"))
        self._open()
        self.identities: int | None = None  #: where the first record says so
        labels, image = self.record(0)
        if len(labels) == 2 and not image:
            end, last = (int(x) for x in labels)
            self.identities = last - end
            is_image = (self.keys >= 1) & (self.keys < end)
            self.images: NDArray[np.int64] = np.flatnonzero(is_image)
            if len(self.images) != end - 1:
                raise RecordError(
                    f"{self.path}: record {self.keys[0]} at offset {self.offsets[0]} tells of "
                    f"{end - 1} images, the index of {len(self.images)}"
                )
        else:
            self.images = np.arange(len(self.keys))

    def _open(self) -> None:
        with self.path.open("rb") as file:
            if not self.path.stat().st_size:
                raise RecordError(f"{self.path}: an empty file")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_bytes"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()  # a worker that was spawned maps the file for itself

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        """The label and the image file of an image."""
        place = int(self.images[index])
        labels, image = self.record(place)
        if not image:
            raise self._error(place, "it has no image")
        return self._whole(place, labels[0]), image

    def _whole(self, place: int, label: float) -> int:
        # Not negative, and not NaN, for which no comparison holds.
        if not (0 <= label < 2**24 and label == int(label)):
            raise self._error(place, f"its label is {label}, not a class")
        return int(label)

    def label(self, index: int) -> int:
        """The label of an image, of which no more than that is read."""
        place = int(self.images[index])
        start = int(self.offsets[place])
        self._part(place, start)
        if start + _PART.size + _HEADER.size + 4 > len(self._bytes):
            return self[index][0]
        flag, label, _, _ = _HEADER.unpack_from(self._bytes, start + _PART.size)
        if flag > 0:
            return self[index][0]
        return self._whole(place, label)

    def record(self, place: int) -> tuple[tuple[float, ...], bytes]:
        """All labels and the image of the record on a line of the index."""
        data = b"".join(self._parts(place))
        if len(data) < _HEADER.size:
            raise self._error(place, f"it has {len(data)} bytes, fewer than a header's")
        flag, label, _, _ = _HEADER.unpack_from(data)
        end = _HEADER.size + 4 * flag
        if end > len(data):
            raise self._error(place, f"it has {len(data)} bytes, fewer than {flag} labels take")
        labels = struct.unpack_from(f"<{flag}f", data, _HEADER.size) if flag else (label,)
        return labels, data[end:]

    def _parts(self, place: int) -> Iterator[bytes]:
        position = int(self.offsets[place])
        kind, length, position = self._part(place, position)
        if kind not in (0, 1):
            raise self._error(place, f"it begins with a part of kind {kind}")
        yield self._bytes[position : position + length]
        while kind in (1, 2):
            kind, length, position = self._part(place, position + length + -length % 4)
            if kind not in (2, 3):
                raise self._error(place, f"a part of kind {kind} follows where 2 or 3 has to")
            yield _MAGIC
            yield self._bytes[position : position + length]

    def _part(self, place: int, position: int) -> tuple[int, int, int]:
        """Kind and length of the part at a position, and where its bytes begin."""
        if position < 0 or position + _PART.size > len(self._bytes):
            raise self._error(place, f"the file ends at {len(self._bytes)}, before byte {position}")
        magic, word = _PART.unpack_from(self._bytes, position)
        if magic != MAGIC:
            raise self._error(place, f"no magic number at {position} but {magic:#010x}")
        kind, length = word >> 29, word & _LONGEST
        if position + _PART.size + length > len(self._bytes):
            raise self._error(
                place, f"{length} bytes from {position} on, and the file ends at {len(self._bytes)}"
            )
        return kind, length, position + _PART.size

    def _error(self, place: int, reason: str) -> RecordError:
        key, offset = self.keys[place], self.offsets[place]
        return RecordError(f"{self.path}: record {key} at offset {offset}: {reason}")

    def described(self, index: int) -> str:
        """An image's record, for an error about the image itself."""
        place = int(self.images[index])
        return f"{self.path}: record {self.keys[place]} at offset {self.offsets[place]}"


def _index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and offsets, in the order of the keys."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what numpy does not understand is a warning otherwise
        try:
            numbers = np.fromstring(path.read_text("ascii"), dtype=np.int64, sep=" ")
            keys, offsets = numbers.reshape(-1, 2).T
        except (ValueError, DeprecationWarning) as error:
            raise RecordError(f"{path}: not lines of a key and an offset ({error})") from None
    if not len(keys):
        raise RecordError(f"{path}: no record")
    order = np.argsort(keys, kind="stable")
    return keys[order].copy(), offsets[order].copy()


class RecordWriter:
    """Writes a .rec and its .idx, split records included; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._index = path.with_suffix(".idx").open("w")

    def write(self, key: int, labels: float | Sequence[float], image: bytes = b"") -> None:
        """One label is written as flag 0, several as so many floats."""
        several = [] if isinstance(labels, (int, float)) else list(labels)
        label = 0.0 if several else float(labels)  # type: ignore[arg-type]
        data = _HEADER.pack(len(several), label, key, 0)
        data += struct.pack(f"<{len(several)}f", *several) + image
        self._index.write(f"{key}\t{self._file.tell()}\n")
        cuts = [i for i in _found(data, _MAGIC) if i % 4 == 0]
        starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
        for start, end in zip(starts, ends, strict=True):
            kind = 0 if not cuts else 1 if start == 0 else 3 if end == len(data) else 2
            self._file.write(_PART.pack(MAGIC, kind << 29 | (end - start)))
            self._file.write(data[start:end] + bytes(-(end - start) % 4))

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        self._index.close()


def _found(data: bytes, wanted: bytes) -> Iterator[int]:
    place = data.find(wanted)
    while place >= 0:
        yield place
        # The next at a multiple of 4 cannot overlap an aligned one; an unaligned one may.
        place = data.find(wanted, place + 1)
