"""The .bin sets (LFW, CFP-FP, AgeDB-30, ...): pickles, read without executing what they say.

A set is `(images, same)`: 2 N image files, of which 2 i and 2 i + 1 are pair i, and N truth values.
Files of Python 2 and of old programs hold numpy arrays and numbers instead of bytes and bools. A
pickle makes these by naming numpy's functions; here the names stand for the two classes below, and
every other name is refused before anything is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pairs(NamedTuple):
    """A verification set: pair i is images 2 i and 2 i + 1."""

    images: list[bytes]  #: encoded
    same: NDArray[np.bool_]  #: [N], whether a pair is one person


class _Type:
    """In place of numpy.dtype."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like, of which a byte has none


class _Array:
    """In place of numpy.ndarray: the bytes of an array of bytes or of truth values."""

    def __init__(self, *_: object) -> None:
        self.data = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, dtype, _, data = state
        # Python 2's bytes may come as text of the same code points.
        data = data.encode("latin1") if isinstance(data, str) else data
        if (
            not isinstance(dtype, _Type)
            or dtype.name not in ("u1", "b1")
            or type(data) is not bytes
        ):
            raise pickle.UnpicklingError("an array of something else than bytes")
        self.data = data


def _scalar(dtype: _Type, data: bytes | str) -> bool:
    if not isinstance(dtype, _Type) or dtype.name not in ("b1", "u1") or len(data) != 1:
        raise pickle.UnpicklingError("a number that is no truth value")
    return data not in (b"\0", "\0")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in Python 2's protocols."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("text that stands for no bytes")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes b"" in Python 2's protocols."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array
    _ALLOWED[_module, "scalar"] = _scalar


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and no verification set needs that; nothing was run"
            )
        return _ALLOWED[module, name]


def read(path: Path) -> Pairs:
    """The pairs of a .bin file.

    Raises:
        ValueError: naming what the file has that no such set has.
    """
    with path.open("rb") as file:
        try:
            found = _Unpickler(file, encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from None
        # Whatever else a damaged or a hostile pickle brings the interpreter to.
        except Exception as error:
            raise ValueError(f"{path}: not a pickle ({type(error).__name__}: {error})") from None
    if not (isinstance(found, (tuple, list)) and len(found) == 2):
        raise ValueError(f"{path}: not a pair of images and truth values")
    images, same = found
    same = list(same.data) if isinstance(same, _Array) else same
    if not (isinstance(images, (tuple, list)) and isinstance(same, (tuple, list))):
        raise ValueError(f"{path}: not a pair of images and truth values")
    files = [image.data if isinstance(image, _Array) else image for image in images]
    for number, file_bytes in enumerate(files):
        if not isinstance(file_bytes, bytes):
            kind = type(file_bytes).__name__
            raise ValueError(f"{path}: image {number} is of type {kind}, not bytes")
    for number, value in enumerate(same):
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise ValueError(f"{path}: pair {number} has no truth value but {value!r}")
    if len(files) != 2 * len(same):
        raise ValueError(f"{path}: {len(files)} images for {len(same)} pairs")
    return Pairs(files, np.array(same, dtype=bool))


def write(path: Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """As InsightFace's own programs do."""
    with path.open("wb") as file:
        pickle.dump((list(images), [bool(x) for x in same]), file, protocol=4)
