"""IJB-B and IJB-C: templates of photographs and video frames, compared in listed pairs.

Two text files say which: a line `image template media` per photograph (ijbc_face_tid_mid.txt), and
a line `template template label` per pair (ijbc_template_pair_label.txt). A template's embedding is
the sum over its media of the mean of a medium's, made a unit vector; pairs are scored by cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .folds import unit

_PAIRS_AT_ONCE = 100_000


class Media(NamedTuple):
    """The photographs in the order of the file."""

    images: list[str]  #: file names
    templates: NDArray[np.int64]
    media: NDArray[np.int64]


class TemplatePairs(NamedTuple):
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]


def read_media(path: Path) -> Media:
    """The first of the files.

    Raises:
        ValueError: naming the line that is none.
    """
    images, templates, media = [], [], []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != 3:
                raise ValueError(f"{path}, line {number}: not `image template media` but {line!r}")
            images.append(fields[0])
            templates.append(fields[1])
            media.append(fields[2])
    return Media(images, np.array(templates, dtype=np.int64), np.array(media, dtype=np.int64))


def read_pairs(path: Path) -> TemplatePairs:
    """The second of the files, which has 15,658,489 lines for IJB-C."""
    numbers = np.loadtxt(path, dtype=np.int64, ndmin=2)
    if numbers.shape[1] != 3 or not np.isin(numbers[:, 2], (0, 1)).all():
        raise ValueError(f"{path}: not lines of two templates and 0 or 1")
    return TemplatePairs(numbers[:, 0], numbers[:, 1], numbers[:, 2] == 1)


def embed_templates(
    embeddings: NDArray[np.floating], media: Media
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of the templates in order, and their unit embeddings [templates, D].

    Args:
        embeddings: [N, D], a row per photograph: that of the image plus that of its mirror image,
            times the detector's score where there is one. Not made unit vectors.
        media: of the same N photographs.

    Raises:
        ValueError: another number of rows.
    """
    if len(embeddings) != len(media.images):
        raise ValueError(f"{len(embeddings)} embeddings of {len(media.images)} photographs")
    keys = np.stack([media.templates, media.media], 1)
    medium, of, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(medium), embeddings.shape[1]))
    np.add.at(sums, of.reshape(-1), embeddings)
    numbers, template_of = np.unique(medium[:, 0], return_inverse=True)
    total = np.zeros((len(numbers), embeddings.shape[1]))
    np.add.at(total, template_of.reshape(-1), sums / counts[:, None])
    return numbers, unit(total)


def scores(
    numbers: NDArray[np.int64], embeddings: NDArray[np.float64], pairs: TemplatePairs
) -> NDArray[np.float64]:
    """Cosines of the pairs.

    Raises:
        ValueError: a pair names a template that has no photograph.
    """
    places = []
    for named in (pairs.first, pairs.second):
        place = np.searchsorted(numbers, named).clip(max=len(numbers) - 1)
        missing = numbers[place] != named
        if missing.any():
            raise ValueError(f"template {named[missing][0]} has pairs and no photograph")
        places.append(place)
    found = np.empty(len(pairs.same))
    for start in range(0, len(found), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        found[part] = (embeddings[places[0][part]] * embeddings[places[1][part]]).sum(1)
    return found
