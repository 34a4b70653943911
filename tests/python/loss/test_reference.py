"""gkd.reference against the oracle and the operator; what only it can do: torch.func, twice."""

import functools

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, vmap

import gkd
from cases import MODES, logits, settings_of, targets
from oracle import error, expected_rows, gradient_of, reduce


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("mode", MODES)
def test_matches_oracle(device, mode, reduction):
    settings, with_target = settings_of(mode)
    for shape in ((5, 1), (5, 2), (4, 33), (2, 300)):
        student, teacher = logits(shape, torch.float64, device)
        student.requires_grad_()
        target = targets(shape, device) if with_target else None
        rows, wide = expected_rows(student, teacher, target, settings)
        expected = reduce(rows, reduction)
        weight = torch.rand(expected.shape, dtype=torch.float64) + 0.5
        truth = gradient_of(expected, wide, weight)
        actual = gkd.reference.loss(student, teacher, target, reduction=reduction, **settings)
        assert error(actual, expected) <= 1e-12
        assert error(gradient_of(actual, student, weight.to(device)), truth) <= 1e-12


EXTREMES = {
    "minus_infinity": [[0.0, -float("inf"), 2.0, 1.0], [3.0, -float("inf"), -float("inf"), 1.0]],
    "huge": [[1e30, -1e30, 0.0, 1.0], [1e4, 0.0, 0.0, -1e4]],
    "one_hot": [[1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e4]],
    "equal": [[1.0, 1.0, 1.0, 1.0], [-0.0, 0.0, 0.0, -0.0]],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_equal_the_operator(name, who, mode):
    settings, with_target = settings_of(mode)
    extreme = torch.tensor(EXTREMES[name], dtype=torch.float64)
    other = torch.randn(2, 4, dtype=torch.float64)
    student = (other if who == "teacher" else extreme).clone().requires_grad_()
    teacher = other if who == "student" else extreme
    target = torch.tensor([2, 1]) if with_target else None
    values, gradients = [], []
    for function in (gkd.loss, gkd.reference.loss):
        values.append(function(student, teacher, target, reduction="none", **settings))
        gradients.append(gradient_of(values[-1], student, torch.tensor([1.5, 0.5])))
    # Entry by entry, NaN and infinities at the same places: what error() has no number for.
    alike = functools.partial(torch.testing.assert_close, equal_nan=True, atol=1e-12)  # noqa: TID251
    alike(values[1], values[0], rtol=1e-12)
    alike(gradients[1], gradients[0], rtol=1e-10)


def test_invalid_and_ignored_rows(device):
    student, teacher = logits((5, 9), torch.float64, device)
    teacher[1], student[2, 3], teacher[4] = float("nan"), float("inf"), -float("inf")
    target = torch.tensor([3, -100, 0, 8, 1], device=device)
    for reduction in ("none", "sum"):
        leaf = student.clone().requires_grad_()
        value = gkd.reference.loss(leaf, teacher, target, reduction=reduction)
        gradient = gradient_of(value, leaf, torch.ones_like(value)).cpu()
        assert not gradient[1].any() and not gradient[[0, 3]].isnan().any()
        assert gradient[[2, 4]].isnan().all()
    assert gkd.reference.loss(student, teacher, torch.full_like(target, -100)) == 0
    bad = torch.tensor([3, 9, 0, 8, -1], device=device)
    rows = gkd.reference.loss(*logits((5, 9), device=device), bad, reduction="none")
    assert rows.isnan().tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("mode", MODES)
def test_differentiates_twice(mode):
    settings, with_target = settings_of(mode)
    student, teacher = logits((2, 5), torch.float64)
    target = targets((2, 5)) if with_target else None
    if settings.get("rank_by") == "student":
        # A finite difference must not cross the cut.
        student = torch.arange(10, dtype=torch.float64).reshape(2, 5).sin() * 5

    def function(x):
        return gkd.reference.loss(x, teacher, target, reduction="none", **settings)

    student.requires_grad_()
    assert torch.autograd.gradgradcheck(function, student, fast_mode=True)
    assert torch.autograd.gradcheck(function, student, check_forward_ad=True, fast_mode=True)


def test_functional_transforms():
    student, teacher = logits((4, 12), torch.float64)
    leaf = student.clone().requires_grad_()
    expected = gradient_of(gkd.loss(leaf, teacher), leaf, torch.tensor(1.0))

    def function(s, t):
        return gkd.reference.loss(s, t, secondary_weight=0.0)

    assert error(grad(function)(student, teacher), expected) <= 1e-12
    tangent = torch.randn_like(student)
    _, slope = jvp(lambda s: function(s, teacher), (student,), (tangent,))
    assert error(slope, (expected * tangent).sum()) <= 1e-12
    many = torch.stack([student, student * 0.5, student + 1])
    per_sample = vmap(grad(function), in_dims=(0, None))(many, teacher)
    each = torch.stack([grad(function)(s, teacher) for s in many])
    assert error(per_sample, each) <= 1e-12
    second = hessian(lambda s: function(s, teacher[:1]))(student[:1]).reshape(12, 12)
    assert error(second, second.T) <= 1e-12 and second.abs().max() > 0


def test_with_a_model_under_functional_call():
    model, inputs = torch.nn.Linear(3, 7).double(), torch.randn(4, 3).double()
    teacher = torch.randn(4, 7, dtype=torch.float64)

    def objective(parameters):
        return gkd.reference.loss(functional_call(model, parameters, (inputs,)), teacher)

    gradients = grad(objective)(dict(model.named_parameters()))
    gkd.loss(model(inputs), teacher).backward()
    assert error(gradients["weight"], model.weight.grad) <= 1e-12
