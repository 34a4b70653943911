"""A small data set in the field's formats, of distorted glyphs: a rehearsal without a face.

`train.rec` and `train.idx` as InsightFace writes them, `glyphs.bin` of pairs, and `ijb-glyphs/`
with the template files of IJB. The identities of the last two are not in the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..glyphs import data as glyphs
from ..glyphs.augment import distorted
from .images import SIZE, encode
from .records import RecordWriter
from .verification import bins


@dataclass(frozen=True)
class Sizes:
    identities: int = 200  #: 71% of them are trained on
    copies: int = 3  #: distorted photographs of each rendering
    pairs: int = 600
    seed: int = 0


def write(root: Path, sizes: Sizes, progress: bool) -> None:
    """All files, into a folder."""
    photos = glyphs.render_dejavu(progress=progress)
    split = glyphs.split(photos, identities=sizes.identities, seed=sizes.seed)
    root.mkdir(parents=True, exist_ok=True)
    parts = [distorted(split.train, sizes.seed + k) for k in range(sizes.copies)]
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    write_records(root / "train.rec", images, labels)
    test = distorted(split.open_test, sizes.seed + 100)
    write_pairs(root / "glyphs.bin", [encode(x) for x in enlarged(test.images)], test.labels, sizes)
    write_templates(root / "ijb-glyphs", test.images, test.labels, sizes.seed)


def enlarged(images: Tensor) -> np.ndarray:
    """uint8 [N, 112, 112, 3] of uint8 [N, 1, H, W]."""
    large = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", align_corners=False)
    return large.round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def write_records(path: Path, images: Tensor, labels: Tensor) -> None:
    """In order of the labels, with the record of sizes first and one per identity last."""
    order = labels.argsort(stable=True)
    count, identities = len(labels), int(labels.max()) + 1
    ends = 1 + labels.bincount(minlength=identities).cumsum(0)
    with RecordWriter(path) as writer:
        writer.write(0, [count + 1, count + 1 + identities])
        for start in range(0, count, 1000):
            chunk = order[start : start + 1000]
            for k, (pixels, label) in enumerate(
                zip(enlarged(images[chunk]), labels[chunk].tolist(), strict=True)
            ):
                writer.write(start + k + 1, [label, 0], encode(pixels))
        begin = 1
        for identity, end in enumerate(ends.tolist()):
            writer.write(count + 1 + identity, [begin, end])
            begin = end


def write_pairs(path: Path, files: list[bytes], labels: Tensor, sizes: Sizes) -> None:
    """As many pairs of one identity as of two, in ten runs of either kind, as LFW has them."""
    generator = np.random.default_rng(sizes.seed)
    own = labels.numpy()
    mated = np.flatnonzero(np.bincount(own)[own] > 1)  # those that have another of their identity
    chosen, same = [], []
    each = sizes.pairs // 20
    for _ in range(10):
        for kind in (True, False):
            for _ in range(each):
                one = generator.choice(mated)
                fits = (own == own[one]) == kind
                fits[one] = False
                other = generator.choice(np.flatnonzero(fits))
                chosen += [files[one], files[other]]
                same.append(kind)
    bins.write(path, chosen, same)


def write_templates(folder: Path, images: Tensor, labels: Tensor, seed: int) -> None:
    """Two templates per identity, of one to four photographs; all pairs of the first with the
    second of each."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "aligned").mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    media, scores, kept = [], [], []
    identities = labels.unique().tolist()
    for identity in identities:
        rows = generator.permutation(np.flatnonzero(labels.numpy() == identity)).tolist()
        for side in range(2):
            for number in range(int(generator.integers(1, 5))):
                if not rows:
                    break
                name = f"{len(kept) + 1}.jpg"
                kept.append(rows.pop())
                # Two frames of one video now and then.
                media.append(f"{name} {2 * identity + side + 1} {number // 2}\n")
                points = " ".join(["30.0"] * 10)
                scores.append(f"{name} {points} {generator.uniform(0.5, 1):.6f}\n")
    pairs = [f"{2 * a + 1} {2 * b + 2} {int(a == b)}\n" for a in identities for b in identities]
    for name, pixels in enumerate(enlarged(images[kept]), 1):
        (folder / "aligned" / f"{name}.jpg").write_bytes(encode(pixels))
    meta = {"face_tid_mid": media, "template_pair_label": pairs, "name_5pts_score": scores}
    for name, lines in meta.items():
        (folder / "meta" / f"glyphs_{name}.txt").write_text("".join(lines))
