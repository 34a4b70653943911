"""gkd.cache.fingerprint: which teacher it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from os import PathLike

import torch
from torch import Tensor

_CHUNK = 2**24  # bytes that are hashed, and copied from a device, at a time


def fingerprint(
    teacher: Mapping[str, object] | bytes | bytearray | memoryview | PathLike[str],
) -> str:
    """A name for a teacher that changes with any of its weights: SHA-256 of all of them.

    Args:
        teacher: a state dict, whose tensors may be on any device; or bytes; or a file's path.

    Returns:
        64 hexadecimal digits. Of a state dict: of the names in order, dtypes, shapes and values,
        wherever they are and whatever the strides.

    Raises:
        TypeError: a value of the state dict that is neither a tensor nor plain Python data.

    Examples:
        >>> gkd.cache.fingerprint(torch.nn.Linear(2, 3).state_dict()) == "0" * 64
        False
    """
    digest = hashlib.sha256()
    if isinstance(teacher, Mapping):
        for name in sorted(teacher):
            for part in _entry(name, teacher[name]):
                digest.update(part)
    elif isinstance(teacher, (bytes, bytearray, memoryview)):
        digest.update(teacher)
    else:
        with open(teacher, "rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
    return digest.hexdigest()


def _entry(name: str, value: object) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode()
        # Not flatten(): of a tensor with strides that would copy all of it.
        rows = value.detach().reshape(1) if value.dim() == 0 else value.detach()
        step = max(1, _CHUNK * rows.shape[0] // max(1, rows.numel() * rows.element_size()))
        for chunk in torch.split(rows, step):
            yield chunk.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        yield f"{name}\0{value!r}\0".encode()
    elif isinstance(value, Mapping):
        for inner in sorted(value):
            yield from _entry(f"{name}\0{inner}", value[inner])
    else:
        raise TypeError(
            f"gkd.cache.fingerprint: {name} must be a Tensor or a plain value, got "
            f"{type(value).__name__}"
        )
