"""What other kernels got wrong and no other test here looks at."""

import pytest
import torch

import gkd
from accuracy import truth
from cases import logits
from oracle import BOUND, error, expected_rows, gradient_of

DKD = {"group_size": 0, "primary_weight": 0.0, "binary_weight": 1.0, "secondary_weight": 8.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mass_just_short_of_the_threshold_is_not_enough(device, dtype):
    for probabilities, size in (
        ((0.5, 0.39999, 0.10001), 3),
        ((0.5, 0.40001, 0.09999), 2),
        ((0.10001, 0.5, 0.39999), 3),
        ((0.95, 0.03, 0.02), 1),
    ):
        teacher = torch.tensor([probabilities], dtype=dtype, device=device).log()
        for method in ("sort", "select"):
            group = gkd.group(teacher, teacher, threshold=0.9, temperature=1.0, method=method)
            assert group.size.tolist() == [size]
            assert group.mass_teacher.item() >= 0.9


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_of_a_teacher_without_doubt(device, dtype, temperature):
    """The target's probability is 1 or 0 to the last bit, the other classes' the reverse."""
    student = torch.randn(4, 30).to(dtype).to(device).requires_grad_()
    teacher = torch.zeros(4, 30, dtype=dtype, device=device)
    target = torch.tensor([3, 3, 7, 7], device=device)
    teacher[0, 3] = teacher[1, 8] = 1e4
    teacher[2, 7], teacher[3, 7] = float(torch.finfo(dtype).max) / 2, -1e4
    settings = {**DKD, "temperature": temperature}
    rows = gkd.loss(student, teacher, target, reduction="none", **settings)
    gradient = gradient_of(rows, student, torch.ones(4))
    assert rows.isfinite().all() and gradient.isfinite().all()
    # A row of equal other classes, and one whose other classes are one: the plain formulas hold.
    expected, _ = expected_rows(student, teacher, target, settings)
    assert error(rows[:2], expected[:2]) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_clamp_holds_the_loss(device, dtype):
    """-ln 1e-30 = 69.08 is what a clamped logarithm makes of any smaller probability."""
    for gap in (69.0, 70.0, 500.0, 1e4):
        teacher = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype, device=device)
        student = torch.tensor([[0.0, gap, 0.0]], dtype=dtype, device=device)
        value = gkd.loss(student, teacher, temperature=1.0, coupled=True, primary_weight=1.0)
        assert value.item() == pytest.approx(gap, rel=2e-6)


def test_no_setting_needs_a_target(device):
    """DKD without one has an empty group: what is left is the KL of all classes."""
    student, teacher = logits((4, 20), torch.float64, device)
    rows = gkd.loss(student, teacher, reduction="none", **DKD)
    assert error(rows, expected_rows(student, teacher, None, DKD)[0]) <= 1e-12
    group = gkd.group(student, teacher, group_size=0)
    assert not group.size.any() and not group.mass_teacher.any()


#: Settings and shapes that are legal, one of each kind that changes a result's shape or dtype.
LEGAL = [
    ((0, 5), {}),
    ((4, 1), {"coupled": True}),
    ((4, 2), {"group_size": 1}),
    ((3, 7), {"threshold": 1.0, "temperature": 1e-6}),
    ((3, 7), {"threshold": 1e-30, "temperature": 1e6}),
    ((3, 7), {"group_size": 2**40, "rank_by": "student"}),
    ((3, 7), {"primary_weight": 0.0, "binary_weight": -1.0, "ignore_index": 3}),
]


@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float64, torch.half)])
@pytest.mark.parametrize(("shape", "settings"), LEGAL, ids=str)
def test_meta_tells_shapes_and_dtypes(device, shape, settings, dtypes, with_target):
    def outcome(where):
        student = torch.zeros(shape, dtype=dtypes[0], device=where)
        teacher = torch.zeros(shape, dtype=dtypes[1], device=where).t().contiguous().t()
        target = torch.zeros(shape[0], dtype=torch.int32, device=where) if with_target else None
        found = []
        for reduction in ("none", "mean", "sum"):
            leaf = student.clone().requires_grad_()
            value = gkd.loss(leaf, teacher, target, reduction=reduction, **settings)
            value.sum().backward()
            found += [value, leaf.grad]
        found += gkd.group(student, teacher, target, **settings)[:-1]
        found += gkd.group(student, teacher, target, return_mask=True, **settings)
        return [(x.shape, x.dtype, x.stride(), x.device.type == where) for x in found]

    assert outcome("meta") == outcome(device)


def test_meta_has_no_targets_to_check():
    logits_, target = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.long).to("meta")
    assert gkd.loss(logits_, logits_, target, check_target=True).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_temperatures_at_both_ends(device, dtype, temperature):
    student, teacher = logits((2, 20), dtype, device)
    settings = {"temperature": temperature, "secondary_weight": 1.0}
    rows = gkd.loss(student, teacher, reduction="none", **settings)
    mask = gkd.group(student, teacher, temperature=temperature, return_mask=True).mask.cpu().numpy()
    wide = [x.cpu().double().numpy() for x in (student, teacher)]
    # In long double and without differences of logarithms: at 1e6 those are 1e-6 of their terms.
    exact = [truth(*row, temperature)(8, 1, 1)[0] for row in zip(*wide, mask, strict=True)]
    assert error(rows, torch.tensor([float(x) for x in exact], dtype=torch.float64)) <= BOUND[dtype]
