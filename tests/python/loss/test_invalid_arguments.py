"""Inputs that must be refused: the same text on CPU, CUDA and Meta."""

import re

import pytest
import torch

import gkd
from devices import DEVICES
from invalid_inputs import SETTINGS, TENSORS


def refused(kind, text, name="gkd.loss"):
    return pytest.raises(kind, match=re.escape(f"{name}: {text}"))


@pytest.fixture(params=[*DEVICES, "meta"])
def any_device(request):
    return request.param


@pytest.mark.parametrize(
    ("settings", "kind", "text"), SETTINGS, ids=[case[-1] for case in SETTINGS]
)
def test_bad_setting(any_device, settings, kind, text):
    logits = torch.zeros(4, 10, device=any_device)
    with refused(kind, text):
        gkd.loss(logits, logits, **settings)
    with refused(kind, text):
        gkd.loss(logits.clone().requires_grad_(), logits, **settings)
    if any_device == "cpu":  # neither needs a batch to find out
        with refused(kind, text, "gkd.GKDLoss"):
            gkd.GKDLoss(**settings)
        if "method" not in settings:
            with refused(kind, text, "gkd.reference.loss"):
                gkd.reference.loss(logits, logits, **settings)


@pytest.mark.parametrize(
    ("student", "teacher", "target", "kind", "text"), TENSORS, ids=[case[-1] for case in TENSORS]
)
def test_bad_tensor(any_device, student, teacher, target, kind, text):
    args = [None if make is None else make(any_device) for make in (student, teacher, target)]
    with refused(kind, text):
        gkd.loss(*args)
    with refused(kind, text, "gkd.group"):
        gkd.group(*args)
    with refused(kind, text, "gkd::loss"):
        torch.ops.gkd.loss(*args)
    if any_device == "cpu":
        with refused(kind, text, "gkd.reference.loss"):
            gkd.reference.loss(*args)


def test_devices_differ():
    here, there = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    with refused(RuntimeError, "all tensors must be on one device, got cpu and meta"):
        gkd.loss(here, there)
    with refused(RuntimeError, "all tensors must be on one device, got cpu and meta"):
        gkd.loss(here, here, torch.zeros(2, dtype=torch.long, device="meta"))


@pytest.mark.cuda
def test_cuda_and_cpu_differ():
    on_gpu, on_cpu = torch.zeros(2, 3, device="cuda"), torch.zeros(2, 3)
    text = "all tensors must be on one device, got "
    with refused(RuntimeError, text + "cuda:0 and cpu"):
        gkd.loss(on_gpu, on_cpu)
    with refused(RuntimeError, text + "cpu and cuda:0"):
        gkd.loss(on_cpu, on_gpu)
    with refused(RuntimeError, text + "cuda:0 and cpu"):
        gkd.loss(on_gpu, on_gpu, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("bad", [5, 7, -1, -99, 2**40])
def test_target_out_of_bounds(device, bad):
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    target = torch.tensor([0, 1, -100, bad, 4, bad])
    text = f"target {bad} is out of bounds for 5 classes (row 3)"
    args = [x.to(device) for x in (student, teacher, target)]
    with refused(IndexError, text):
        gkd.loss(*args, check_target=True)
    with refused(IndexError, text, "gkd.GKDLoss"):
        gkd.GKDLoss(check_target=True)(*args)
    if device == "cpu":
        with refused(IndexError, text):
            gkd.loss(*args)
        return
    leaf = args[0].clone().requires_grad_()
    rows = gkd.loss(leaf, *args[1:], reduction="none")
    rows.sum().backward()
    good = torch.tensor([0, 1, 2, 4])
    safe = target.clone()
    safe[[3, 5]] = 0
    again = args[0].clone().requires_grad_()
    expected = gkd.loss(again, args[1], safe.to(device), reduction="none")
    expected.sum().backward()
    rows, expected = rows.detach().cpu(), expected.detach().cpu()
    gradient, truth = leaf.grad.cpu(), again.grad.cpu()
    assert rows[[3, 5]].isnan().all() and gradient[[3, 5]].isnan().all()
    assert torch.equal(rows[good], expected[good]) and torch.equal(gradient[good], truth[good])


def test_check_target_lets_good_targets_pass(device):
    student, teacher = torch.randn(3, 5, device=device), torch.randn(3, 5, device=device)
    for dtype in (torch.int32, torch.int64):
        target = torch.tensor([4, -100, 0], dtype=dtype, device=device)
        checked = gkd.loss(student, teacher, target, check_target=True)
        assert torch.equal(checked, gkd.loss(student, teacher, target))


def test_teacher_requires_grad(any_device):
    student = torch.zeros(2, 3, device=any_device)
    teacher = torch.zeros(2, 3, device=any_device, requires_grad=True)
    for leaf in (student, student.clone().requires_grad_()):
        with refused(
            ValueError, "teacher_logits must not require grad; pass teacher_logits.detach()"
        ):
            gkd.loss(leaf, teacher)
        gkd.loss(leaf, teacher.detach())
    with refused(ValueError, "teacher_logits must not require grad", "gkd.reference.loss"):
        gkd.reference.loss(student, teacher)
    with torch.no_grad():
        gkd.loss(student, teacher)
