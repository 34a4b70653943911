"""Photographs of identities, where they come from, and how they are split.

* `render_dejavu`: every character that all twelve DejaVu faces of matplotlib draw (or as many faces
  as you say, or further font files too), look-alikes dropped. Nothing is downloaded.
* `load_folders`: your own images, one folder per identity.
* `split`: identities into known, validation and test; a known identity's photographs into train
  and test. Nothing is in two parts.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

# The last two are the closed-set test: their features (mono, serif, bold, slanted) all occur in
# the ten before them, but not in these combinations.
FACES = (
    *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
    *("SansMono", "SansMono-Bold", "SansMono-BoldOblique"),
    *("Serif", "Serif-Bold", "Serif-Italic"),
    *("SansMono-Oblique", "Serif-BoldItalic"),
)
TEST_SHARE = 1 / 6  # of an identity's photographs: the last two of twelve faces
FONT_SUFFIXES = {".ttf", ".otf"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Photos:
    """Photographs in identity order: every identity's own stand in the order of its source."""

    images: Tensor  #: uint8 [N, 1, size, size]
    identity: Tensor  #: int64 [N], index into `names`
    is_test: Tensor  #: bool [N], the last sixth (one at least) of each identity's photographs
    names: list[str]

    def of(self, identities: Tensor) -> Tensor:
        """bool [N]: which photographs show one of these identities."""
        return torch.isin(self.identity, identities)


@dataclass(frozen=True)
class Part:
    """Images and labels of one part of the split; labels count from 0."""

    images: Tensor  #: uint8 [N, 1, size, size]
    labels: Tensor  #: int64 [N]


@dataclass(frozen=True)
class Split:
    """What training may see (`train`), what choices are made on, and what is reported."""

    train: Part  #: known identities, training photographs; label = class of the head
    closed_test: Part  #: the same identities and labels, photographs never trained on
    validation: Part  #: other identities, their training photographs only
    open_test: Part  #: other identities again, all their photographs
    names: list[str]  #: of the known identities, by label

    @property
    def classes(self) -> int:
        return len(self.names)


def _draw(font: ImageFont.FreeTypeFont, text: str, size: int) -> np.ndarray:
    """The glyph in white on black, its ink centred, as faces are aligned before recognition."""
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (size, size))
    origin = ((size - right - left) / 2, (size - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(origin, text, fill=255, font=font)
    return np.asarray(canvas)


def _look_alikes(glyphs: np.ndarray, tolerance: float = 0.03) -> np.ndarray:
    """bool [characters]: like one that is kept before it, so that no recogniser could tell.

    Alike means identical in any face, or a mean over the faces that draw both of
    |a - b|^2 / (|a| |b|) below the tolerance. `glyphs` is [characters, faces, pixels]; a blank one
    is not drawn.
    """
    count, faces, _ = glyphs.shape
    distance = np.zeros((count, count), dtype=np.float32)
    shared = np.zeros((count, count), dtype=np.float32)
    alike = np.zeros((count, count), dtype=bool)
    for face in range(faces):
        drawn = np.flatnonzero(glyphs[:, face].any(axis=1))
        both = np.ix_(drawn, drawn)
        flat = glyphs[drawn, face].astype(np.float32) / 255
        gram = flat @ flat.T
        squares = np.diag(gram).copy()
        gap = np.maximum(squares[:, None] + squares[None] - 2 * gram, 0)
        distance[both] += gap / np.sqrt(squares[:, None] * squares[None])
        shared[both] += 1
        # The bytes decide what is identical: a distance of 0 is rounding noise in the Gram form.
        first: dict[bytes, int] = {}
        key = np.array([first.setdefault(glyphs[i, face].tobytes(), i) for i in drawn])
        alike[both] |= key[:, None] == key[None]
    alike |= distance < tolerance * shared
    dropped = np.zeros(count, dtype=bool)
    for index in range(count):
        dropped[index] = bool((alike[index, :index] & ~dropped[:index]).any())
    return dropped


def font_files(folders: Sequence[Path]) -> list[Path]:
    """Every .ttf and .otf file below the folders, in order of name."""
    found = (p for folder in folders for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in found if p.suffix.lower() in FONT_SUFFIXES)


def render_dejavu(
    size: int = 32,
    *,
    least_faces: int = len(FACES),
    fonts: Sequence[Path] = (),
    progress: bool = True,
) -> Photos:
    """All characters that enough faces draw, look-alikes dropped, in order of code point.

    Further font files stand before DejaVu's faces, whose last two so remain the test.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [*fonts, *(folder / f"DejaVu{face}.ttf" for face in FACES)]
    drawn = [set(FT2Font(str(path)).get_charmap()) for path in paths]
    times = Counter(code for codes in drawn for code in codes)
    texts = [chr(code) for code in sorted(times) if times[code] >= least_faces]
    # Two thirds of the image for an em leaves room for accents and for augmentation.
    faces = [ImageFont.truetype(str(path), round(size * 2 / 3)) for path in paths]
    glyphs = np.zeros((len(texts), len(faces), size, size), dtype=np.uint8)
    for row, text in enumerate(tqdm(texts, desc="render", unit="char", disable=not progress)):
        for column, (face, codes) in enumerate(zip(faces, drawn, strict=True)):
            if ord(text) in codes:
                glyphs[row, column] = _draw(face, text, size)
    glyphs = glyphs.reshape(len(texts), len(faces), -1)
    inked = glyphs.any(axis=2).sum(axis=1) >= least_faces  # spaces are blank
    glyphs, texts = glyphs[inked], [text for text, keep in zip(texts, inked, strict=True) if keep]
    keep = ~_look_alikes(glyphs)
    glyphs, texts = glyphs[keep], [text for text, kept in zip(texts, keep, strict=True) if kept]
    visible = glyphs.any(axis=2)
    counts = visible.sum(axis=1)
    return Photos(
        images=torch.from_numpy(glyphs[visible].reshape(-1, 1, size, size)),
        identity=torch.arange(len(texts)).repeat_interleave(torch.from_numpy(counts)),
        is_test=_last_photos(counts.tolist()),
        names=[_name(text) for text in texts],
    )


def _name(text: str) -> str:
    return f"{text} U+{ord(text):04X} {unicodedata.name(text, '')}".strip()


def _last_photos(counts: list[int]) -> Tensor:
    marks = []
    for count in counts:
        tests = max(1, round(count * TEST_SHARE))
        marks.append(torch.arange(count) >= count - tests)
    return torch.cat(marks)


def load_folders(root: Path, size: int = 32, *, progress: bool = True) -> Photos:
    """Images under `root/IDENTITY/`, in grey, scaled and cropped to a square; three at least each.

    Raises:
        ValueError: there are fewer than eight such folders, too few to split.
    """
    folders = {
        folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
    }
    usable = {name: files for name, files in folders.items() if len(files) >= 3}
    if len(usable) < 8:
        raise ValueError(
            f"{root} has {len(usable)} folders with three images or more, needs 8 at least: "
            "make one folder per identity and put its image files in it"
        )
    if len(usable) < len(folders):
        print(f"left out: {len(folders) - len(usable)} folders with fewer than three images")
    images = []
    for files in tqdm(usable.values(), desc="load", unit="identity", disable=not progress):
        images += [torch.from_numpy(_read(file, size)) for file in files]
    counts = [len(files) for files in usable.values()]
    return Photos(
        images=torch.stack(images)[:, None],
        identity=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        is_test=_last_photos(counts),
        names=list(usable),
    )


def _read(file: Path, size: int) -> np.ndarray:
    with Image.open(file) as image:
        grey = image.convert("L")
    side = min(grey.size)
    left, top = (grey.width - side) // 2, (grey.height - side) // 2
    square = grey.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BILINEAR))


def split(photos: Photos, *, identities: int | None = None, seed: int = 0) -> Split:
    """Draws `identities` of them (all by default): 19% test, 10% validation, the rest known."""
    total = len(photos.names)
    used = total if identities is None else min(identities, total)
    if used < 8:
        raise ValueError(f"a split needs 8 identities at least, got {used}")
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:used]
    tests, validations = max(2, round(used * 0.19)), max(2, round(used * 0.1))
    test, validation, known = (
        part.sort().values for part in drawn.split([tests, validations, used - tests - validations])
    )
    return Split(
        train=_part(photos, known, ~photos.is_test),
        closed_test=_part(photos, known, photos.is_test),
        validation=_part(photos, validation, ~photos.is_test),
        open_test=_part(photos, test, torch.ones_like(photos.is_test)),
        names=[photos.names[index] for index in known.tolist()],
    )


def _part(photos: Photos, identities: Tensor, photo_mask: Tensor) -> Part:
    chosen = photos.of(identities) & photo_mask
    return Part(photos.images[chosen], torch.searchsorted(identities, photos.identity[chosen]))
