"""Inputs that must be refused: the same text on CPU, CUDA and Meta. Numbered as in rows.py."""

import re

import pytest
import torch

import gkd
from conftest import DEVICES

NAN, INF = float("nan"), float("inf")

# number: settings, exception, text after "gkd::loss: "
SETTINGS = [
    (27, {"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0"),
    (27, {"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1"),
    (27, {"temperature": NAN}, ValueError, "temperature must be finite and > 0, got nan"),
    (27, {"temperature": INF}, ValueError, "temperature must be finite and > 0, got inf"),
    (28, {"temperature": 1e-8}, ValueError, "temperature must be in [1e-6, 1e6], got 1e-08"),
    (28, {"temperature": 1e8}, ValueError, "temperature must be in [1e-6, 1e6], got 1e+08"),
    (29, {"threshold": 0.0}, ValueError, "threshold must be in (0, 1], got 0"),
    (29, {"threshold": -0.5}, ValueError, "threshold must be in (0, 1], got -0.5"),
    (29, {"threshold": 1.5}, ValueError, "threshold must be in (0, 1], got 1.5"),
    (29, {"threshold": NAN}, ValueError, "threshold must be in (0, 1], got nan"),
    (32, {"group_size": -1}, ValueError, "group_size must be >= 0, got -1"),
    (
        34,
        {"threshold": 0.93, "group_size": 2},
        ValueError,
        "give one of threshold and group_size, got threshold 0.93 and group_size 2",
    ),
    (35, {"primary_weight": NAN}, ValueError, "primary_weight must be finite, got nan"),
    (35, {"binary_weight": INF}, ValueError, "binary_weight must be finite, got inf"),
    (35, {"secondary_weight": -INF}, ValueError, "secondary_weight must be finite, got -inf"),
    (
        35,
        {"binary_weight": -1e31},
        ValueError,
        "binary_weight must be in [-1e30, 1e30], got -1e+31",
    ),
    (44, {"reduction": "max"}, ValueError, "reduction must be none, mean or sum, got max"),
    (0, {"rank_by": "loss"}, ValueError, "rank_by must be teacher or student, got loss"),
    (0, {"method": "bogo"}, ValueError, "method must be auto, sort or select, got bogo"),
]


def shaped(*shape, dtype=torch.float32):
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


X = shaped(4, 10)
WRONG_KIND = "expected floating point "
# number: student, teacher, target, exception, text
TENSORS = [
    (2, shaped(4, 0), shaped(4, 0), None, ValueError, "needs at least one class, got [4, 0]"),
    (
        5,
        X,
        shaped(4, 9),
        None,
        ValueError,
        "student [4, 10] and teacher [4, 9] must have the same shape",
    ),
    (
        5,
        X,
        shaped(1, 10),
        None,
        ValueError,
        "student [4, 10] and teacher [1, 10] must have the same shape",
    ),
    (6, shaped(10), shaped(10), None, ValueError, "expected 2-D [B, C] student, got 1-D"),
    (6, shaped(2, 3, 4), X, None, ValueError, "expected 2-D [B, C] student, got 3-D"),
    (6, X, shaped(2, 3, 4), None, ValueError, "expected 2-D [B, C] teacher, got 3-D"),
    (7, shaped(4, 10, dtype=torch.int32), X, None, TypeError, WRONG_KIND + "student, got Int"),
    (7, shaped(4, 10, dtype=torch.bool), X, None, TypeError, WRONG_KIND + "student, got Bool"),
    (7, X, shaped(4, 10, dtype=torch.int64), None, TypeError, WRONG_KIND + "teacher, got Long"),
    (
        9,
        shaped(4, 10, dtype=torch.complex64),
        X,
        None,
        TypeError,
        "unsupported dtype of student: expected float16, bfloat16, float32 or float64, "
        "got ComplexFloat",
    ),
    (
        9,
        X,
        shaped(4, 10, dtype=torch.float8_e4m3fn),
        None,
        TypeError,
        "unsupported dtype of teacher: expected float16, bfloat16, float32 or float64, "
        "got Float8_e4m3fn",
    ),
    (
        41,
        X,
        X,
        shaped(4),
        TypeError,
        "target must be int64 or int32, got Float",
    ),
    (
        41,
        X,
        X,
        shaped(4, dtype=torch.bool),
        TypeError,
        "target must be int64 or int32, got Bool",
    ),
    (42, X, X, shaped(4, 1, dtype=torch.long), ValueError, "target must be [4], got [4, 1]"),
    (42, X, X, shaped(5, dtype=torch.long), ValueError, "target must be [4], got [5]"),
    (42, X, X, shaped(dtype=torch.long), ValueError, "target must be [4], got []"),
]


def cases(table):
    """Parameters of a table, each marked with the input that it is one of."""
    return [
        pytest.param(*rest, id=f"row_{n:02}_{k}", marks=[pytest.mark.input(n)] if n else [])
        for k, (n, *rest) in enumerate(table)
    ]


def refused(kind, text):
    return pytest.raises(kind, match="^gkd::loss: " + re.escape(text))


@pytest.fixture(params=[*DEVICES, "meta"])
def any_device(request):
    return request.param


@pytest.mark.parametrize(("settings", "kind", "text"), cases(SETTINGS))
def test_bad_setting(any_device, settings, kind, text):
    logits = torch.zeros(4, 10, device=any_device)
    with refused(kind, text):
        gkd.loss(logits, logits, **settings)
    with refused(kind, text):
        gkd.loss(logits.clone().requires_grad_(), logits, **settings)
    if any_device == "cpu":  # neither needs a batch to find out
        with refused(kind, text):
            gkd.GKDLoss(**settings)
        if "method" not in settings:
            with refused(kind, text):
                gkd.reference.loss(logits, logits, **settings)


@pytest.mark.parametrize(("student", "teacher", "target", "kind", "text"), cases(TENSORS))
def test_bad_tensor(any_device, student, teacher, target, kind, text):
    args = [None if make is None else make(any_device) for make in (student, teacher, target)]
    with refused(kind, text):
        gkd.loss(*args)
    with pytest.raises(kind, match="^gkd::group: " + re.escape(text)):
        gkd.group(*args)
    if any_device == "cpu":
        with refused(kind, text):
            gkd.reference.loss(*args)


@pytest.mark.input(11)
def test_row_11_devices_differ():
    here, there = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    with refused(RuntimeError, "all tensors must be on one device, got cpu and meta"):
        gkd.loss(here, there)
    with refused(RuntimeError, "all tensors must be on one device, got cpu and meta"):
        gkd.loss(here, here, torch.zeros(2, dtype=torch.long, device="meta"))


@pytest.mark.cuda
@pytest.mark.input(11)
def test_row_11_cuda_and_cpu_differ():
    on_gpu, on_cpu = torch.zeros(2, 3, device="cuda"), torch.zeros(2, 3)
    text = "all tensors must be on one device, got "
    with refused(RuntimeError, text + "cuda:0 and cpu"):
        gkd.loss(on_gpu, on_cpu)
    with refused(RuntimeError, text + "cpu and cuda:0"):
        gkd.loss(on_cpu, on_gpu)
    with refused(RuntimeError, text + "cuda:0 and cpu"):
        gkd.loss(on_gpu, on_gpu, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("bad", [5, 7, -1, -99, 2**40])
@pytest.mark.input(37)
@pytest.mark.regression("pytorch#12372", "pytorch#43840", "pytorch#106467")
def test_row_37_target_out_of_bounds(device, bad):
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    target = torch.tensor([0, 1, -100, bad, 4, bad])
    text = f"target {bad} is out of bounds for 5 classes (row 3)"
    args = [x.to(device) for x in (student, teacher, target)]
    with refused(IndexError, text):
        gkd.loss(*args, check_target=True)
    with refused(IndexError, text):
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


@pytest.mark.input(48)
def test_row_48_teacher_requires_grad(any_device):
    student = torch.zeros(2, 3, device=any_device)
    teacher = torch.zeros(2, 3, device=any_device, requires_grad=True)
    for leaf in (student, student.clone().requires_grad_()):
        with refused(ValueError, "teacher needs no gradient; pass teacher.detach()"):
            gkd.loss(leaf, teacher)
        gkd.loss(leaf, teacher.detach())
    with torch.no_grad():
        gkd.loss(student, teacher)
