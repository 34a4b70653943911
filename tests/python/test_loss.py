"""Parity with the float64 oracle: every mode, dtype and reduction, with random grad_output."""

import pytest
import torch
from oracle import loss_rows, primary_mask

import gkd

MODES = {
    "gkd": {},
    "low_threshold": {"threshold": 0.5, "temperature": 1.0},
    "student_rank": {"rank_by": "student", "group_size": 7, "secondary_weight": 0.5},
    "kd": {"coupled": True, "primary_weight": 1.0, "secondary_weight": 1.0},
    "top_k": {"group_size": 5, "secondary_weight": 2.0},
}
LOSS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}
GRAD = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", LOSS, ids=str)
# 1 and 2: degenerate groups; 33: a tail past two vectors; 1025: past a 1,024-class chunk.
@pytest.mark.parametrize("classes", [1, 2, 33, 1025])
def test_matches_oracle(classes, dtype, mode, with_target, reduction):
    settings = dict(MODES[mode])
    student = (torch.randn(5, classes) * 3).to(dtype).requires_grad_()
    teacher = (torch.randn(5, classes) * 6).to(dtype)
    target = torch.randint(classes, (5,)) if with_target else None
    actual = gkd.loss(student, teacher, target, reduction=reduction, **settings)
    weight = torch.rand(actual.shape, dtype=actual.dtype) + 0.5
    (actual * weight).sum().backward()

    wide = student.detach().double().requires_grad_()
    ranked = wide.detach() if settings.pop("rank_by", "teacher") == "student" else teacher.double()
    size, threshold = settings.pop("group_size", None), settings.pop("threshold", 0.93)
    mask = primary_mask(ranked, threshold, size, settings.get("temperature", 4.0), target)
    expected = loss_rows(wide, teacher, mask, **settings)
    expected = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
    (expected * weight.double()).sum().backward()
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    assert error <= LOSS[dtype], f"loss off by {error}"
    scale = wide.grad.abs().max().clamp_min(1e-12)
    error = (student.grad.double() - wide.grad).abs().max() / scale
    assert error <= GRAD[dtype], f"gradient off by {error}"


def test_ignored_rows_count_for_nothing_even_with_nan():
    student, teacher = torch.randn(4, 9).requires_grad_(), torch.randn(4, 9)
    teacher[1] = float("nan")
    target = torch.tensor([3, -100, 0, 8])
    gkd.loss(student, teacher, target).backward()
    kept = torch.tensor([0, 2, 3])
    expected = gkd.loss(student.detach()[kept], teacher[kept], target[kept])
    assert torch.equal(gkd.loss(student.detach(), teacher, target), expected)
    assert torch.equal(student.grad[1], torch.zeros(9))
    assert gkd.loss(student.detach(), teacher, torch.full((4,), -100)) == 0


def test_nan_stays_in_its_row():
    student, teacher = torch.randn(4, 200), torch.randn(4, 200)
    clean = gkd.loss(student, teacher, reduction="none")
    for bad in (float("nan"), -float("nan"), float("inf")):
        dirty = teacher.clone()
        dirty[2, 77] = bad
        rows = gkd.loss(student, dirty, reduction="none")
        assert rows[2].isnan()
        assert torch.equal(rows[[0, 1, 3]], clean[[0, 1, 3]])


def test_equal_logits_give_exact_zero():
    student = (torch.randn(3, 1000) * 20).requires_grad_()
    value = gkd.loss(student, student.detach().clone(), secondary_weight=1.0)
    value.backward()
    assert value == 0 and not student.grad.any()


def test_gradcheck():
    student = torch.randn(3, 11, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(3, 11, dtype=torch.float64) * 3
    assert torch.autograd.gradcheck(
        lambda s: gkd.loss(s, teacher, secondary_weight=0.3, reduction="none"), student
    )


def test_backward_twice_keeps_the_first_result():
    student, teacher = torch.randn(3, 500).requires_grad_(), torch.randn(3, 500)
    loss = gkd.loss(student, teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    kept = first.clone()
    (last,) = torch.autograd.grad(3 * loss, student)  # nothing follows: scaled in place
    assert torch.equal(first, kept)
    torch.testing.assert_close(last, 3 * kept, rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_in_a_batch_of_grad_outputs():
    student, teacher = torch.randn(2, 50).requires_grad_(), torch.randn(2, 50)
    rows = gkd.loss(student, teacher, reduction="none")
    (both,) = torch.autograd.grad(rows, student, torch.eye(2), is_grads_batched=True)
    (whole,) = torch.autograd.grad(gkd.loss(student, teacher, reduction="sum"), student)
    assert torch.equal(both.sum(0), whole)


def test_double_backward_is_refused():
    student, teacher = torch.randn(2, 5).requires_grad_(), torch.randn(2, 5)
    (grad,) = torch.autograd.grad(gkd.loss(student, teacher), student, create_graph=True)
    with pytest.raises(NotImplementedError, match="gkd::loss is not differentiable twice"):
        grad.sum().backward()
