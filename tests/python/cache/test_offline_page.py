"""docs/offline.md: its sizes, and its bounds of what float16 changes."""

import re

import pytest
import torch

import gkd
from markdown import ROOT

PAGE = (ROOT / "docs" / "offline.md").read_text()


def test_table_of_sizes():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        classes, half, single, times = (int(x.replace(",", "")) for x in row)
        assert half == classes * (4 + 2) + 24 and single == classes * (4 + 4) + 24
        assert times == round(2 * 151_936 / half)


def test_sizes_of_embeddings():
    assert "take 1,036 bytes: 12 GB for 5.8 million images" in PAGE
    assert round(1036 * 2 * 5.8e6 / 1e9) == 12
    assert "The logits of 85,742 classes would be 2 TB" in PAGE
    assert round(2 * 85_742 * 2 * 5.8e6 / 1e12) == 2


def shares(group, temperature):
    """[B, n]: log p/P within the group; [B]: log P/P'; of groups of one size, in float64."""
    logits = group.logits.double().reshape(len(group.rest), -1) / temperature
    return logits.log_softmax(1), logits.logsumexp(1) - group.rest


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_what_narrow_logits_change(dtype, unit, temperature):
    teacher = 6 * torch.randn(200, 500, dtype=torch.float64) + 30
    settings = {"group_size": 20, "temperature": temperature}
    exact = gkd.reference.teacher_group(teacher, **settings)
    changes = []
    for logits in (teacher, teacher - teacher.amax(1, keepdim=True)):
        kept = gkd.reference.teacher_group(logits, dtype=dtype, **settings)
        assert kept.indices.equal(exact.indices)
        largest = logits.gather(1, exact.indices.long().reshape(200, 20)).abs().amax(1)
        (share, odds), (true_share, true_odds) = (
            shares(kept, temperature),
            shares(exact, temperature),
        )
        bound = unit * largest / temperature
        assert ((share - true_share).abs().amax(1) <= 2 * bound).all()
        assert ((odds - true_odds).abs() <= bound + 1e-13).all()
        changes.append((share.exp() - true_share.exp()).abs().amax(1).mean())
    assert changes[1] < changes[0] / 3, "without the largest logit float16 is finer"
