"""Gigabytes and minutes: what only a result of more than 2^31 elements shows. With --large alone.

Inputs are expanded from one row or one column, and ignored rows cost a write: the gradient is what
takes the memory.
"""

import pytest
import torch

import gkd
from cases import logits
from oracle import gradient_of, same_bits


def needs(gib, device):
    """Skips where the device has less memory that is free."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free memory, has {free / 2**30:.1f}")


@pytest.mark.large
@pytest.mark.parametrize("total", [2**31, 2**32], ids=["2^31", "2^32"])
def test_gradient_to_the_last_row(device, total):
    needs(total * 2 / 2**30 + 1, device)
    student, teacher = logits((1, 4096), torch.float16, device)
    rows = total // 4096 + 1
    target = torch.full((rows,), -100, device=device)
    target[-1] = 5
    leaf = student.expand(rows, 4096).detach().requires_grad_()
    value = gkd.loss(leaf, teacher.expand(rows, 4096), target, reduction="sum")
    gradient = gradient_of(value, leaf, torch.tensor(0.7))
    alone = student.clone().requires_grad_()
    expected = gkd.loss(alone, teacher, target[-1:], reduction="sum")
    assert same_bits(value, expected)
    assert same_bits(gradient[-1:], gradient_of(expected, alone, torch.tensor(0.7)))
    assert not gradient[-3:-1].any() and not gradient[:2].any()


@pytest.mark.large
def test_mask_to_the_last_row(device):
    needs(3, device)
    student, teacher = logits((1, 4096), torch.float16, device)
    rows = 2**31 // 4096 + 1
    target = torch.full((rows,), -100, device=device)
    target[-1] = 5
    wide = [x.expand(rows, 4096) for x in (student, teacher)]
    group = gkd.group(*wide, target, return_mask=True)
    expected = gkd.group(student, teacher, target[-1:], return_mask=True)
    assert group.mask[-1:].equal(expected.mask) and not group.mask[-2].any()
    assert group.size[-1:].equal(expected.size)


@pytest.mark.large
@pytest.mark.parametrize("classes", [2**31 - 1, 2**31 + 7])
def test_one_row_past_31_bits(classes):
    """On the CPU: a device refuses rows past 2^31 - 1 (test_memory.py)."""
    flat = torch.full((1, 1), 1.5).expand(1, classes)
    other = torch.full((1, 1), -2.0).expand(1, classes)
    for how in ({}, {"group_size": 3}):
        group = gkd.group(other, flat, **how)
        assert group.size.item() == classes and group.cut.item() == 1.5
        assert abs(group.mass_teacher.item() - 1) <= 1e-6
    assert gkd.loss(other, flat).item() == 0


@pytest.mark.large
def test_more_rows_than_a_grid_of_blocks(device):
    """2^22 and a few rows: with 512 threads each, 2^31 threads."""
    needs(3, device)
    rows = 2**22 + 5
    student, teacher = logits((rows, 2), device=device)
    got = gkd.loss(student, teacher, reduction="none", threshold=0.5)
    last = [x[-5:].clone() for x in (student, teacher)]
    assert same_bits(got[-5:], gkd.loss(*last, reduction="none", threshold=0.5))
    assert got.isfinite().all() and (got >= 0).all()
