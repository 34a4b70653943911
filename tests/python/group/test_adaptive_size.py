"""gkd.adaptive_group_size against its definition, summed in float64."""

import pytest
import torch

import gkd


def by_definition(student, rate, step):
    mass = student.double().softmax(1).sum(0).sort(descending=True).values.cumsum(0)
    for n in range(step, student.shape[1], step):
        if mass[n - 1] >= rate * student.shape[0]:
            return n
    return student.shape[1]


# 99, 100, 101: around one step; 2500: many steps, the last one short.
@pytest.mark.parametrize("classes", [1, 99, 100, 101, 2500])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_equals_its_definition(device, classes, spread):
    student = (torch.randn(7, classes) * spread).to(device)
    for rate, step in ((0.93, 100), (0.5, 7), (0.999, 1)):
        size = gkd.adaptive_group_size(student, rate, step)
        assert size.dtype == torch.int64 and size.shape == () and size.device == student.device
        assert int(size) == by_definition(student.cpu(), rate, step)


def test_feeds_the_loss(device):
    student, teacher = torch.randn(4, 500).to(device), torch.randn(4, 500).to(device)
    size = int(gkd.adaptive_group_size(student, 0.5, 10))
    got = gkd.group(student, teacher, group_size=size, rank_by="student").size
    assert (got == size).all()


@pytest.mark.parametrize("on", ["cpu", "meta"])
def test_refuses_bad_arguments(on):
    logits = torch.zeros(2, 5, device=on)
    with pytest.raises(ValueError, match=r"gkd.adaptive_group_size: rate must be in \(0, 1\]"):
        gkd.adaptive_group_size(logits, 1.5)
    with pytest.raises(ValueError, match="step must be >= 1, got 0"):
        gkd.adaptive_group_size(logits, step=0)
    with pytest.raises(ValueError, match=r"student_logits must be \[\.\.\., C\], got a scalar"):
        gkd.adaptive_group_size(logits[0, 0])
    assert gkd.adaptive_group_size(logits).dtype == torch.int64


def test_opcheck():
    torch.library.opcheck(torch.ops.gkd.adaptive_group_size.default, (torch.randn(3, 20), 0.9, 5))
