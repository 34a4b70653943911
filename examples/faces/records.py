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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

MAGIC = struct.pack("<I", 0xCED7230A)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_LONGEST = 2**29 - 1


class RecordError(ValueError):
    """A record that cannot be read; says which, and where it begins."""


class Records:
    """The images of a .rec file by position, 0 to len - 1, each a label and an image file's bytes.

    The file is mapped, so that workers share its pages, and nothing is shared that a fork breaks.

    Raises:
        RecordError: when opened, of an index that is none, of a file that ends too early and of a
            first record that others contradict; when read, of a damaged record. Its bytes have no
            checksum: damage inside an image is not noticed, nor a length that is wrong by so little
            that the padding makes up for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.keys, self.offsets = _index(self.path.with_suffix(".idx"))
        self._open()
        self.record(int(self.offsets.argmax()))  # a file that was cut short is found at once
        self.identities: int | None = None  #: where the first record says so
        self.images: NDArray[np.int64] = np.arange(len(self.keys))
        labels, image = self.record(0)
        if len(labels) == 2 and not image:
            self._restrict(*labels)

    def _restrict(self, images_end: float, identities_end: float) -> None:
        """To the images that InsightFace's record 0 tells of."""
        if not (1 <= images_end <= identities_end < np.inf) or images_end % 1 or identities_end % 1:
            raise self._error(0, f"labels {images_end} and {identities_end} are no ranges of keys")
        end = int(images_end)
        self.identities = int(identities_end) - end
        self.images = np.flatnonzero((self.keys >= 1) & (self.keys < end))
        if len(self.images) != end - 1:
            raise self._error(0, f"{end - 1} images, and the index has {len(self.images)} of them")
        # A float32 is rounded above 2^24: the range could take an identity in or leave images out.
        after = int(np.searchsorted(self.keys, end))
        for place in (after - 1, after):
            is_image = place < after
            if 0 < place < len(self.keys) and bool(self.record(place)[1]) != is_image:
                kind = "no image" if is_image else "an image"
                raise self._error(0, f"{end - 1} images, and record {self.keys[place]} is {kind}")

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
        return self._class(place, labels[0]), image

    def label(self, index: int) -> int:
        """The label of an image, of which no more than the part's beginning is read."""
        place = int(self.images[index])
        _, start, end = self._part(place, int(self.offsets[place]))
        if end - start > _HEADER.size:
            flag, label, _, _ = _HEADER.unpack_from(self._bytes, start)
            if start + _HEADER.size + 4 * flag < end:
                if flag:
                    (label,) = _LABEL.unpack_from(self._bytes, start + _HEADER.size)
                return self._class(place, label)
        return self[index][0]  # which joins the parts, or says what is wrong

    def _class(self, place: int, label: float) -> int:
        # Not negative, and not NaN, for which no comparison holds.
        if not (0 <= label < 2**24 and label == int(label)):
            raise self._error(place, f"its label is {label}, not a class")
        return int(label)

    def record(self, place: int) -> tuple[tuple[float, ...], bytes]:
        """All labels and the image of a record; its place is that of its key among all keys."""
        data = MAGIC.join(self._parts(place))
        if len(data) < _HEADER.size:
            raise self._error(place, f"it has {len(data)} bytes, fewer than a header's")
        flag, label, _, _ = _HEADER.unpack_from(data)
        end = _HEADER.size + 4 * flag
        if end > len(data):
            raise self._error(place, f"it has {len(data)} bytes, fewer than {flag} labels take")
        labels = struct.unpack_from(f"<{flag}f", data, _HEADER.size) if flag else (label,)
        return labels, data[end:]

    def _parts(self, place: int) -> list[bytes]:
        """What the parts hold. The record ends where another begins, or the file ends."""
        parts, position = [], int(self.offsets[place])
        first, further = (_WHOLE, _FIRST), (_MIDDLE, _LAST)
        kind, allowed = _FIRST, first
        while kind in (_FIRST, _MIDDLE):
            kind, start, end = self._part(place, position)
            if kind not in allowed:
                raise self._error(place, f"a part of kind {kind} at {position}, not of {allowed}")
            parts.append(self._bytes[start:end])
            if _cuts(parts[-1]) or (kind in (_FIRST, _MIDDLE) and len(parts[-1]) % 4):
                raise self._error(place, f"the part at {position} is not cut where the magic is")
            position = end + -(end - start) % 4
            allowed = further
        if position != len(self._bytes) and self._part(place, position)[0] not in first:
            raise self._error(place, f"no record begins at {position}, where it ends")
        return parts

    def _part(self, place: int, position: int) -> tuple[int, int, int]:
        """Kind of the part at a position, and where its bytes begin and end."""
        start, size = position + _PART.size, len(self._bytes)
        if position < 0 or start > size:
            raise self._error(place, f"the file ends at {size}, and a part is at {position}")
        magic, word = _PART.unpack_from(self._bytes, position)
        if magic != MAGIC:
            raise self._error(place, f"no magic number at {position} but {magic.hex()}")
        kind, length = word >> 29, word & _LONGEST
        if start + length > size:
            raise self._error(place, f"the file ends at {size}, and {length} bytes are at {start}")
        return kind, start, start + length

    def _error(self, place: int, reason: str) -> RecordError:
        return RecordError(f"{self._named(place)}: {reason}")

    def _named(self, place: int) -> str:
        return f"{self.path}: record {self.keys[place]} at offset {self.offsets[place]}"

    def described(self, index: int) -> str:
        """An image's record, for an error about the image itself."""
        return self._named(int(self.images[index]))


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
    for name, column in (("key", keys), ("offset", offsets)):
        ordered = np.sort(column)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise RecordError(f"{path}: {name} {twice[0]} twice")
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
        if len(data) > _LONGEST:
            raise ValueError(f"record {key}: {len(data)} bytes, more than {_LONGEST}")
        self._index.write(f"{key}\t{self._file.tell()}\n")
        cuts = _cuts(data)
        starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
        kinds = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST] if cuts else [_WHOLE]
        for kind, start, end in zip(kinds, starts, ends, strict=True):
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


def _cuts(data: bytes) -> list[int]:
    """The multiples of 4 at which the magic is."""
    cuts, place = [], data.find(MAGIC)
    while place >= 0:
        if place % 4 == 0:
            cuts.append(place)
        place = data.find(MAGIC, place + 1)
    return cuts
