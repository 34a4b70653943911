"""Autograd and memory: what is saved, scaled, left alone and repeated to the bit."""

import copy

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from made import Made
from oracle import DTYPES, error, gradient_of, same_bits


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(device, mode):
    settings, with_target = settings_of(mode)
    student, teacher = logits((3, 7), torch.float64, device)
    target = targets((3, 7), device) if with_target else None
    for reduction in ("none", "mean"):

        def function(x, reduction=reduction):
            return gkd.loss(x, teacher, target, reduction=reduction, **settings)

        assert torch.autograd.gradcheck(function, student.requires_grad_())


def test_retain_graph_accumulates_exactly(device):
    student, teacher = logits((3, 50), device=device)
    leaf = student.requires_grad_()
    rows = gkd.loss(leaf, teacher, reduction="none")
    first = torch.tensor([1.0, 2.0, 4.0], device=device)
    one = torch.autograd.grad(rows, leaf, first, retain_graph=True)[0]
    again = torch.autograd.grad(rows, leaf, first, retain_graph=True)[0]
    double = torch.autograd.grad(rows, leaf, -2 * first)[0]
    assert same_bits(one, again) and same_bits(one * -2, double)


def test_grad_output_expanded_or_strided(device):
    student, teacher = logits((4, 20), device=device)
    leaf = student.requires_grad_()
    rows = gkd.loss(leaf, teacher, reduction="none")
    weights = torch.randn(8, device=device)
    for odd in (weights[::2], weights[:1].expand(4), weights.reshape(4, 2)[:, 1]):
        plain = torch.autograd.grad(rows, leaf, odd.clone(), retain_graph=True)[0]
        assert same_bits(torch.autograd.grad(rows, leaf, odd, retain_graph=True)[0], plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_stay_as_they_are(device, dtype):
    student, teacher = logits((4, 300), dtype, device)
    target = targets((4, 300), device)
    before = [copy.deepcopy(x) for x in (student, teacher, target)]
    leaf = student.requires_grad_()
    versions = [x._version for x in (leaf, teacher, target)]
    gkd.loss(leaf, teacher, target).backward()
    assert [x._version for x in (leaf, teacher, target)] == versions
    for was, now in zip(before, (student, teacher, target), strict=True):
        assert same_bits(was, now)


@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "no_student_grad"])
def test_no_gradient_buffer_without_a_gradient(device, way):
    student, teacher = logits((4, 1000), device=device)
    student.requires_grad_(way != "no_student_grad")
    expected = gkd.loss(student, teacher).detach()
    guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with guard.get(way, torch.enable_grad)(), Made() as seen:
        value = gkd.loss(student, teacher)
    assert same_bits(value, expected)
    assert seen.largest < student.numel()
    with Made() as seen:  # the measure itself: with a gradient there is a buffer
        gkd.loss(student.detach().requires_grad_(), teacher)
    assert seen.largest == student.numel()


def test_same_bits_on_every_run(device, sizes):
    student, teacher = logits((3, sizes.long_row), device=device)
    first = None
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(sizes.repeats):
            leaf = student.clone().requires_grad_()
            value = gkd.loss(leaf, teacher)
            value.backward()
            first = first or (value.detach(), leaf.grad)
            assert same_bits(value, first[0]) and same_bits(leaf.grad, first[1])
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_do_not_depend_on_their_batch(device):
    student, teacher = logits((6, 777), device=device)
    together = gkd.loss(student, teacher, reduction="none")
    for row in range(6):
        alone = gkd.loss(student[row : row + 1], teacher[row : row + 1], reduction="none")
        assert same_bits(alone, together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(device, dtype):
    student, teacher = logits((3, 40), dtype, device)
    expected = gkd.loss(student, teacher)
    with torch.autocast(device, dtype=dtype):
        value = gkd.loss(student.requires_grad_(), teacher)
    assert value.dtype == torch.float32 and same_bits(value, expected)
    assert gradient_of(value, student, torch.tensor(1.0)).dtype == dtype


def test_backward_twice_keeps_the_first_result(device):
    student, teacher = logits((3, 500), device=device)
    loss = gkd.loss(student.requires_grad_(), teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    kept = first.clone()
    (last,) = torch.autograd.grad(3 * loss, student)  # nothing follows: scaled in place
    assert same_bits(first, kept)
    assert error(last, 3 * kept) <= 1e-6
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_in_a_batch_of_grad_outputs():
    student, teacher = torch.randn(2, 50).requires_grad_(), torch.randn(2, 50)
    rows = gkd.loss(student, teacher, reduction="none")
    (both,) = torch.autograd.grad(rows, student, torch.eye(2), is_grads_batched=True)
    (whole,) = torch.autograd.grad(gkd.loss(student, teacher, reduction="sum"), student)
    assert torch.equal(both.sum(0), whole)
