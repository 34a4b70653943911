"""Logits of any number of dimensions, and the settings that make other losses of gkd.loss."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import gkd
from cases import logits, targets
from oracle import error, same_bits

#: Leading dimensions: none, one, a language model's batch and sequence, and ones without a row.
SHAPES = [(40,), (1, 40), (2, 3, 40), (2, 1, 3, 40), (0, 40), (2, 0, 40)]


def flat(x):
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_dimensions_are_rows(device, shape, reduction):
    student, teacher = logits(shape, device=device)
    target = torch.randint(40, shape[:-1]).to(device)
    leaf, matrix = student.clone().requires_grad_(), flat(student).clone().requires_grad_()
    value = gkd.loss(leaf, teacher, target, reduction=reduction)
    expected = gkd.loss(matrix, flat(teacher), target.flatten(), reduction=reduction)
    assert value.shape == (shape[:-1] if reduction == "none" else ())
    grad_output = torch.randn(value.shape).to(device)
    (got,) = torch.autograd.grad(value, leaf, grad_output)
    (want,) = torch.autograd.grad(expected, matrix, grad_output.reshape(expected.shape))
    assert same_bits(value.reshape(expected.shape), expected)
    assert got.shape == shape and same_bits(flat(got), want)
    other = gkd.reference.loss(student, teacher, target, reduction=reduction)
    assert other.shape == value.shape


def test_every_function_takes_leading_dimensions(device):
    shape = (2, 3, 40)
    student, teacher = (x.transpose(0, 1) for x in logits((3, 2, 40), device=device))  # no view
    target = torch.randint(40, shape[:-1]).to(device)
    of_rows = gkd.group(flat(student), flat(teacher), target.flatten(), return_mask=True)
    found = gkd.group(student, teacher, target, return_mask=True)
    for got, want in zip(found, of_rows, strict=True):
        assert got.shape[:2] == shape[:2] and same_bits(got.reshape(want.shape), want)
    assert gkd.adaptive_group_size(student, step=1) == gkd.adaptive_group_size(
        flat(student), step=1
    )


def test_sharded_and_linear_losses_take_leading_dimensions():
    student, teacher = logits((2, 3, 40))
    target = torch.randint(40, (2, 3))
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        value = gkd.distributed.loss(
            student, teacher, target, class_start=0, num_classes=40, reduction="none"
        )
    finally:
        dist.destroy_process_group()
    assert error(value, gkd.loss(student, teacher, target, reduction="none")) <= 2e-6
    heads = torch.randn(2, 3, 8), torch.randn(40, 8), torch.randn(2, 3, 6), torch.randn(40, 6)
    rows = (heads[0].reshape(6, 8), heads[1], heads[2].reshape(6, 6), heads[3])
    for reduction in ("none", "mean"):
        got = gkd.linear_loss(*heads, target, reduction=reduction)
        want = gkd.linear_loss(*rows, target.flatten(), reduction=reduction)
        assert same_bits(got.reshape(want.shape), want)


def test_presets_are_the_losses_they_name():
    student, teacher = logits((4, 30), torch.float64)
    target, t = targets((4, 30)), 2.0
    q, p = ((x / t).log_softmax(1) for x in (student, teacher))
    kd = t * t * F.kl_div(q, p, reduction="batchmean", log_target=True)
    assert error(gkd.GKDLoss.kd(temperature=t)(student, teacher), kd) <= 1e-12
    assert error(gkd.GKDLoss.kd(temperature=t)(student, teacher, target), kd) <= 1e-12
    settings = {"group_size": 0, "primary_weight": 0.0, "temperature": t}
    dkd = gkd.loss(student, teacher, target, binary_weight=2.0, secondary_weight=5.0, **settings)
    preset = gkd.GKDLoss.dkd(alpha=2.0, beta=5.0, temperature=t)
    assert same_bits(preset(student, teacher, target), dkd)
    gdkd = gkd.loss(
        student, teacher, group_size=5, primary_weight=3.0, binary_weight=0.5, secondary_weight=2.0
    )
    preset = gkd.GKDLoss.gdkd(5, top_weight=3.0, other_weight=2.0, binary_weight=0.5)
    assert same_bits(preset(student, teacher), gdkd)
    assert gkd.GKDLoss.kd(reduction="sum", rank_by="student").reduction == "sum"
