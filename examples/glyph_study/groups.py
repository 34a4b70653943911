"""Group size against threshold, temperature and scale, measured on test photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import gkd
from examples.glyphs.augment import distorted
from examples.glyphs.evaluate import embed
from examples.glyphs.models import Recogniser
from examples.glyphs.study import TEST_SEED

from .lab import Lab
from .record import Row

# Logits are cosines x scale and are divided by T: only the quotient matters to a group.
SHARPNESS = (4, 8, 16, 32, 64)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.93, 0.97, 0.99, 0.999)


@torch.no_grad()
def group_rows(lab: Lab, student: Recogniser) -> list[Row]:
    """20th, 50th and 80th percentile of the size, by either ranking; and the batch's one size."""
    closed = distorted(lab.parts.closed_test, TEST_SEED)
    cosines = {
        "teacher": embed(lab.teacher, closed.images) @ F.normalize(lab.teacher.head).t(),
        "student": student.cosines(embed(student, closed.images)),
    }
    rows: list[Row] = []
    for ranked, values in cosines.items():
        for sharpness in SHARPNESS:
            logits = values * sharpness
            for threshold in THRESHOLDS:
                sizes = gkd.group(logits, logits, threshold=threshold, temperature=1.0).size
                rows.append(_row(ranked, sharpness, threshold, sizes))
    logits = cosines["student"] * lab.settings.distillation_scale
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    batches = [b for b in order.split(lab.settings.batch) if len(b) == lab.settings.batch]
    for threshold in THRESHOLDS:
        sizes = torch.stack(
            [gkd.adaptive_group_size(logits[b], threshold, 2) for b in batches or [order]]
        )
        rows.append(_row("batch", lab.settings.distillation_scale, threshold, sizes))
    return rows


def _row(ranked: str, sharpness: float, threshold: float, sizes: Tensor) -> Row:
    low, middle, high = sizes.double().quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return {
        "stage": "groups",
        "ranked": ranked,
        "sharpness": sharpness,
        "threshold": threshold,
        "p20": round(low, 1),
        "median": round(middle, 1),
        "p80": round(high, 1),
    }
