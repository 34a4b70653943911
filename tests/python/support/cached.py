"""Rows of a cache that follow from their keys: what is read is compared with nothing stored."""

import numpy as np
import torch

import gkd
from oracle import same_bits

CLASSES = 5_000
#: What they pretend to have been made with.
SETTINGS = {"threshold": 0.9, "temperature": 2.0}


def made(samples, parts=0, dtype=torch.float16):
    """A TeacherGroup of one row a key: 0 to 12 classes, another size and other values for each."""
    samples, parts = np.broadcast_arrays(np.asarray(samples, np.int64), np.asarray(parts, np.int64))
    code = (samples.ravel() * 2654435761 + parts.ravel() * 40503) & 0x7FFFFFFF
    sizes = (code >> 3) % 13
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    row = np.repeat(np.arange(len(code)), sizes)
    place = np.arange(indptr[-1]) - indptr[row]
    indices = ((code >> 5) % (CLASSES - 60))[row] + place * (1 + (code >> 9) % 4)[row]
    # Few bits, so that 16 of them hold each number.
    logits = ((code % 251)[row] - 3 * place) / 8
    return gkd.TeacherGroup(
        torch.from_numpy(indptr),
        torch.from_numpy(indices.astype(np.int32)),
        torch.from_numpy(logits).to(dtype),
        torch.from_numpy((code % 8191) / 64),
    )


def same(found, expected):
    """Equal to the bit; an empty tensor has none."""
    pairs = list(zip(found, expected, strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs) and all(
        same_bits(a, b) for a, b in pairs if a.numel()
    )


def written(folder, samples, *, dtype=torch.float16, step=100, **more):
    """A cache of these samples; its folder."""
    with gkd.cache.GroupWriter(
        folder, num_classes=CLASSES, dtype=dtype, **{**SETTINGS, **more}
    ) as writer:
        for first in range(0, len(samples), step):
            chunk = samples[first : first + step]
            writer.write(chunk, made(chunk, dtype=dtype))
    return folder
