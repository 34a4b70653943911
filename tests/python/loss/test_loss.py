"""Parity with the float64 oracle: every mode, dtype and reduction, with random grad_output."""

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from oracle import (
    BOUND,
    DTYPES,
    HALVES,
    error,
    expected_rows,
    gradient_bound,
    gradient_of,
    reduce,
    same_bits,
    same_sums,
)

REDUCTIONS = ("none", "mean", "sum")


def check(student, teacher, target, settings, ulps=1.02):
    """gkd.loss against the oracle under every reduction; grad_output is never 1."""
    rows, wide = expected_rows(student, teacher, target, settings)
    compute = torch.promote_types(student.dtype, teacher.dtype)
    # The oracle is float64 too, and takes plain differences.
    oracle = 1e-12 if compute == torch.float64 else 0.0
    for reduction in REDUCTIONS:
        actual = gkd.loss(student, teacher, target, reduction=reduction, **settings)
        expected = reduce(rows, reduction)
        assert actual.dtype == (torch.float64 if compute == torch.float64 else torch.float32)
        off = error(actual, expected)
        assert off <= BOUND[compute] + oracle, f"{reduction} loss is off by {off}"
        weight = torch.rand(expected.shape) + 0.5
        gradient = gradient_of(actual, student, weight.to(student.device))
        (truth,) = torch.autograd.grad(expected, wide, weight.double(), retain_graph=True)
        assert gradient.dtype == student.dtype
        off = error(gradient, truth)
        bound = gradient_bound(student.dtype, ulps) + oracle
        assert off <= bound, f"{reduction} gradient is off by {off}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_matches_oracle(device, sizes, mode, dtype):
    settings, with_target = settings_of(mode)
    for shape in sizes.parity:
        student, teacher = logits(shape, dtype, device)
        target = targets(shape, device) if with_target else None
        check(student.requires_grad_(), teacher, target, settings)


@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=lambda d: f"teacher_{d}")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: f"student_{d}")
def test_mixed_dtypes_equal_the_upcast(device, dtype, teacher_dtype):
    student, teacher = logits((3, 130), dtype, device, teacher_dtype)
    compute = torch.promote_types(torch.promote_types(dtype, teacher_dtype), torch.float32)
    mixed = gkd.loss(student, teacher, secondary_weight=0.5)
    assert same_sums(
        mixed, gkd.loss(student.to(compute), teacher.to(compute), secondary_weight=0.5)
    )
    check(student.requires_grad_(), teacher, None, {"secondary_weight": 0.5})


@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32], ids=str)
def test_target_dtypes(device, target_dtype):
    student, teacher = logits((6, 50), torch.float64, device)
    target = targets((6, 50), device).to(target_dtype)
    check(student.requires_grad_(), teacher, target, {"group_size": 3})


def test_rows_take_their_own_grad_output(device):
    student, teacher = logits((6, 40), torch.float64, device)
    student.requires_grad_()
    weight = torch.tensor([0.0, 1.5, -2.0, 0.0, 1e-3, 7.0], dtype=torch.float64)
    rows, wide = expected_rows(student, teacher, None, {})
    actual = gradient_of(
        gkd.loss(student, teacher, reduction="none"), student, weight.to(device)
    ).cpu()
    assert error(actual, gradient_of(rows, wide, weight)) <= 1e-12
    assert not actual[0].any() and not actual[3].any()


def half_error(dtype, device, rows, grad_output, **settings):
    student, teacher = logits((rows, 257), dtype, device)
    student.requires_grad_()
    expected, wide = expected_rows(student, teacher, None, settings)
    value = gkd.loss(student, teacher, **settings)
    gradient = gradient_of(value, student, torch.tensor(grad_output, device=device))
    return error(gradient, gradient_of(expected.mean(), wide, torch.tensor(grad_output)))


# 7 and 100 rows: a mean whose weight is no power of two.
@pytest.mark.parametrize("rows", [1, 4, 7, 100])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_gradient_is_rounded_once_under_a_gradient_scaler(device, dtype, rows):
    for scale in (1.0, 2.0**10, 2.0**-3):
        assert half_error(dtype, device, rows, scale) <= gradient_bound(dtype, 0.51)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_gradient_is_rounded_twice_at_most(device, dtype, rows):
    for scale in (0.3, 1.7, 77.7, -3.3):
        assert half_error(dtype, device, rows, scale) <= gradient_bound(dtype, 1.02)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_gradient_rounds_ties_to_even(device, dtype):
    # 1.5 times a number of few bits often lies half way between two others.
    student, teacher = logits((3, 257), dtype, device)
    student.requires_grad_()
    one, more = (
        gradient_of(gkd.loss(student, teacher, reduction="sum"), student, torch.tensor(by)).cpu()
        for by in (1.0, 1.5)
    )
    normal = one.abs() >= torch.finfo(dtype).tiny
    assert same_bits(more[normal], (one.float() * 1.5).to(dtype)[normal])


def test_half_gradient_keeps_small_entries(device):
    # 1/B of a mean would push these below float16's smallest number before a scaler sees them.
    student, teacher = torch.zeros(128, 4096), torch.randn(128, 4096)
    student = student.half().to(device).requires_grad_()
    value = gkd.loss(student, teacher.half().to(device), threshold=1.0)
    gradient = gradient_of(value, student, torch.tensor(2.0**16))
    assert (gradient == 0).float().mean() < 0.01


def test_methods_agree(device, sizes):
    for shape in sizes.parity:
        student, teacher = logits(shape, torch.float32, device)
        teacher = teacher.round()  # ties
        for how in ({}, {"threshold": 0.3}, {"group_size": 3}, {"rank_by": "student"}):
            by_sort = {"method": "sort", **how}
            sets = [gkd.group(student, teacher, return_mask=True, **s).mask for s in (by_sort, how)]
            assert torch.equal(*sets)
            # On a device the methods sum in different orders: equal to rounding.
            rows = [gkd.loss(student, teacher, reduction="none", **s) for s in (by_sort, how)]
            assert error(rows[0], rows[1].double()) <= BOUND[torch.float32]
