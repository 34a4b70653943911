"""The judges of every other test, and the parity test itself: each must refuse what is wrong."""

import math

import pytest
import torch

import gkd
import test_loss
from cases import logits
from oracle import error, loss_rows, primary_mask, same_bits

NAN, INF = float("nan"), float("inf")
ROWS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.25]])


def changed(value, at=(1, 0)):
    other = ROWS.clone()
    other[at] = value
    return other


@pytest.mark.parametrize(
    "wrong",
    [
        changed(0.01),
        changed(NAN),
        changed(-NAN, (0, 0)),
        changed(INF),
        -ROWS,
        ROWS * 1.001,
        ROWS * 16,  # T^2 twice
        ROWS.flip(0),
        ROWS / 3,
        torch.zeros_like(ROWS),
        torch.full_like(ROWS, NAN),
    ],
    ids=str,
)
def test_wrong_values_have_an_error(wrong):
    assert error(wrong, ROWS) > 2e-4 and error(wrong, ROWS.double()) > 2e-4
    assert not same_bits(wrong, ROWS)


def test_nothing_is_close_to_nan_or_infinity():
    for value in (NAN, INF, -INF):
        assert error(changed(value), changed(value)) == math.inf
        assert error(ROWS, changed(value)) == math.inf


def test_errors_are_measured():
    assert error(ROWS, ROWS.double()) == 0
    assert error(changed(3e-6), ROWS) == pytest.approx(1e-6, rel=1e-3)
    assert error(torch.tensor(1e-9), torch.tensor(0.0)) > 1e20  # nothing is near 0
    assert error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


@pytest.mark.parametrize("judge", [error, same_bits])
def test_shapes_and_dtypes_must_agree(judge):
    for other in (ROWS[:1], ROWS[0], ROWS.t(), ROWS.flatten(), ROWS[None], ROWS[:, :0]):
        with pytest.raises(AssertionError):
            judge(other, ROWS)
        with pytest.raises(AssertionError):
            judge(ROWS, other)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(AssertionError):
            judge(ROWS, ROWS.to(dtype))
    with pytest.raises(AssertionError):
        judge(ROWS.double(), ROWS)


def test_bits():
    assert same_bits(ROWS, ROWS.clone()) and same_bits(ROWS.t(), ROWS.t().contiguous())
    assert same_bits(torch.tensor(NAN), torch.tensor(NAN))
    assert not same_bits(torch.tensor(-0.0), torch.tensor(0.0))
    assert not same_bits(torch.tensor([NAN]), torch.tensor([-NAN]))
    assert not same_bits(ROWS, torch.nextafter(ROWS, ROWS + 1))


def by_definition(student, teacher, target, settings):
    """The definition, written out once more: what the broken losses below are broken from."""
    mask = primary_mask(teacher.detach(), target=target)
    return loss_rows(student, teacher, mask, **settings)


def unsquared(student, teacher, target, **settings):
    return by_definition(student, teacher, target, settings) / 4


def turned_around(student, teacher, target, **settings):
    return by_definition(teacher, student, target, settings)


def a_little_off(student, teacher, target, **settings):
    return by_definition(student, teacher, target, settings) * (1 + 1e-10)


def first_row_only(student, teacher, target, **settings):
    rows = by_definition(student, teacher, target, settings)
    return rows.detach() - rows[:1].detach() + rows[:1]


class IgnoresGradOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        return rows.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return torch.ones_like(grad_output)


def unweighted(student, teacher, target, **settings):
    return IgnoresGradOutput.apply(by_definition(student, teacher, target, settings))


def without_target(student, teacher, target, **settings):
    return by_definition(student, teacher, None, settings)


def untouched(student, teacher, target, **settings):
    return by_definition(student, teacher, target, settings)


BROKEN = [unsquared, turned_around, a_little_off, first_row_only, unweighted, without_target]


@pytest.mark.parametrize("rows_of", [*BROKEN, untouched], ids=lambda f: f.__name__)
def test_parity_refuses_broken_losses(monkeypatch, rows_of):
    """A test that compared the library with itself would let every one of them pass."""
    # A near-uniform teacher's group leaves targets out; float32's bound hides no such change.
    student, teacher = logits((4, 40), torch.float64)
    target = torch.full((4,), int(teacher.sum(0).argmin()))

    def loss(student, teacher, target=None, *, reduction="mean", **settings):
        rows = rows_of(student, teacher, target, **settings)
        return {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]

    monkeypatch.setattr(gkd, "loss", loss)
    if rows_of is untouched:
        test_loss.check(student.requires_grad_(), teacher, target, {})
        return
    with pytest.raises(AssertionError, match="is off by"):
        test_loss.check(student.requires_grad_(), teacher, target, {})
