"""Legal inputs at the edge: what they must give, on every device."""

import pytest
import torch

import gkd
from cases import logits, targets
from oracle import error, expected_rows, gradient_of, rows_and_gradient, same_bits

NAN, INF = float("nan"), float("inf")


def value_and_gradient(*args, **settings):
    """On the CPU."""
    return [x.cpu() for x in rows_and_gradient(*args, **settings)]


def matches_oracle(student, teacher, device, target=None, **settings):
    student, teacher = (torch.as_tensor(x, dtype=torch.float64) for x in (student, teacher))
    rows, wide = expected_rows(student, teacher, target, settings)
    weight = torch.linspace(0.5, 1.5, len(rows), dtype=torch.float64)
    on_device = [None if x is None else x.to(device) for x in (student, teacher, target)]
    actual, gradient = value_and_gradient(*on_device, **settings)
    assert error(actual, rows) <= 1e-12
    assert error(gradient, gradient_of(rows, wide, weight)) <= 1e-12


@pytest.mark.parametrize("with_target", [False, True])
def test_no_rows(device, with_target):
    student = torch.zeros(0, 5, device=device, requires_grad=True)
    teacher = torch.zeros(0, 5, device=device)
    target = torch.zeros(0, dtype=torch.long, device=device) if with_target else None
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0,))):
        value = gkd.loss(student, teacher, target, reduction=reduction)
        assert value.shape == shape and not value.any()
        assert gradient_of(value, student, torch.ones_like(value)).shape == (0, 5)
        plain = gkd.reference.loss(student, teacher, target, reduction=reduction)
        assert plain.shape == shape and not plain.any()
    group = gkd.group(student, teacher, target, return_mask=True)
    assert group.size.shape == (0,) and group.mask.shape == (0, 5)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_two_classes(device, size):
    student, teacher = logits((4, 2), torch.float64)
    for secondary in (0.0, 2.0):
        matches_oracle(student, teacher, device, group_size=size, secondary_weight=secondary)


@pytest.mark.parametrize(
    "values", [(NAN, -NAN), (INF,), (None,)], ids=["NaN", "+inf", "a row of -inf"]
)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_invalid_rows_leave_the_others_alone(device, sizes, values, who):
    student, teacher = logits((4, sizes.long_row), device=device)
    target = targets((4, sizes.long_row), device)
    clean = value_and_gradient(student, teacher, target)
    others = torch.tensor([0, 1, 3])
    for bad in values:
        dirty = {"student": student.clone(), "teacher": teacher.clone()}
        if bad is None:
            dirty[who][2] = -INF
        else:
            dirty[who][2, 77] = bad
        got = value_and_gradient(dirty["student"], dirty["teacher"], target)
        assert got[0][2].isnan() and got[1][2].isnan().all()
        for before, after in zip(clean, got, strict=True):
            assert same_bits(before[others], after[others])
        group = gkd.group(dirty["student"], dirty["teacher"], target)
        assert group.cut[2].isnan() and group.mass_teacher[2].isnan()


def test_minus_infinity_in_the_teacher(device):
    student, teacher = logits((3, 40), torch.float64)
    teacher[:, 5:9] = -INF
    actual, gradient = value_and_gradient(student.to(device), teacher.to(device))
    wide = teacher.clone()
    wide[:, 5:9] = -1e5  # a probability of 0 in float64 too
    expected, truth = value_and_gradient(student.to(device), wide.to(device))
    assert error(actual, expected) <= 1e-13 and error(gradient, truth) <= 1e-13
    student[:, 5:9] = -INF  # in both: such classes contribute nothing
    kept = [j for j in range(40) if not 5 <= j < 9]
    actual, gradient = value_and_gradient(student.to(device), teacher.to(device))
    expected, truth = value_and_gradient(student[:, kept].to(device), teacher[:, kept].to(device))
    assert error(actual, expected) <= 1e-13 and error(gradient[:, kept], truth) <= 1e-13
    assert not gradient[:, 5:9].any()


def test_minus_infinity_in_the_student(device):
    student, teacher = logits((2, 10), torch.float64, device)
    student[0, int(teacher[0].argmax())] = -INF
    rows, gradient = value_and_gradient(student, teacher)
    assert rows[0] == INF and rows[1].isfinite() and gradient.isfinite().all()
    # With its weight 0 the infinite term is not there.
    rows, _ = value_and_gradient(student, teacher, threshold=1.0, primary_weight=0.0)
    assert rows[0].isfinite()


def test_equal_rows(device):
    flat = torch.full((2, 30), 2.5, device=device)
    group = gkd.group(flat, flat, threshold=0.1)
    assert group.size.tolist() == [30, 30]
    assert not any(x.any() for x in value_and_gradient(flat - 1.5, flat, secondary_weight=1.0))
    zeros = torch.tensor([[0.0, -0.0, -3.0, 0.0]], device=device)
    for how in ({"threshold": 0.2}, {"group_size": 1}):
        assert gkd.group(zeros, zeros, **how).size.tolist() == [3]
    student = logits((3, 999), device=device)[0] * 5
    for teacher in (student.clone(), student):
        rows, gradient = value_and_gradient(student, teacher, secondary_weight=1.0)
        assert not rows.any() and not gradient.any()


def test_huge_gaps(device):
    one_hot = torch.zeros(2, 6)
    one_hot[0, 2], one_hot[1, 5] = 1e4, 1e4
    other = torch.randn(2, 6)
    for student, teacher in ((one_hot, other), (other, one_hot), (one_hot, one_hot.roll(1, 0))):
        matches_oracle(student, teacher, device, secondary_weight=1.0)
    for dtype, top in ((torch.float32, 1e30), (torch.float64, 1e300), (torch.float16, 65504.0)):
        signs = torch.tensor([[1.0, -1.0, 0.0, 1.0], [1.0, 1.0, 1.0, -1.0]])
        student = (signs.to(dtype) * top).to(device)
        for temperature in (1.0, 8.0):
            rows, gradient = value_and_gradient(student, student, temperature=temperature)
            assert not rows.any() and not gradient.any()
        rows, gradient = value_and_gradient(torch.zeros_like(student), student)
        assert rows.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("gap", [80.0, 90.0, 95.0, 104.0, 120.0, 800.0, 1e4, 1e30])
def test_gap_sweep_in_float32(device, gap):
    student = torch.tensor([[0.0, -gap, 1.0], [0.0, 0.0, -gap]])
    teacher = torch.tensor([[0.5, 0.0, 1.0], [1.0, -gap, 0.0]])
    wide, rows = [x.double() for x in (student, teacher)], None
    for settings in ({"temperature": 1.0}, {"temperature": 1.0, "secondary_weight": 1.0}):
        rows, gradient = value_and_gradient(student.to(device), teacher.to(device), **settings)
        expected, truth = value_and_gradient(*[x.to(device) for x in wide], **settings)
        assert error(rows, expected) <= 2e-6 and error(gradient, truth) <= 2e-6


@pytest.mark.parametrize("rank_by", ["teacher", "student"])
def test_subnormal_logits(device, rank_by):
    student, teacher = ((x * 1e-40).to(device) for x in logits((2, 50)))
    rows, gradient = value_and_gradient(student, teacher, rank_by=rank_by)
    assert (rows <= 1e-30).all() and gradient.isfinite().all()
    # All weigh alike, none ties: 47 is the least number that reaches 0.93 of 50, and 25 is half.
    for how, size in (({}, 47), ({"threshold": 0.5}, 25), ({"group_size": 7}, 7)):
        assert gkd.group(student, teacher, rank_by=rank_by, **how).size.tolist() == [size] * 2


def test_threshold_and_size_at_their_ends(device):
    student, teacher = logits((2, 20), device=device)
    teacher[:, 3] = -INF
    teacher[:, 4] = teacher[:, 7] = 99.0
    assert gkd.group(student, teacher, threshold=1.0).size.tolist() == [19, 19]
    assert gkd.group(student, teacher, threshold=1e-30).size.tolist() == [2, 2]
    assert gkd.group(student, teacher, group_size=20).size.tolist() == [20, 20]
    assert gkd.group(student, teacher, group_size=2**40).size.tolist() == [20, 20]
    assert gkd.group(student, teacher, group_size=1).size.tolist() == [2, 2]


def test_weights(device):
    student, teacher = logits((3, 20), torch.float64)
    matches_oracle(student, teacher, device, primary_weight=-3.0, binary_weight=-0.5)
    teacher[0, 0], student[0, 0] = 30.0, -INF
    nothing = {"primary_weight": 0.0, "binary_weight": 0.0, "secondary_weight": 0.0}
    rows, gradient = value_and_gradient(student.to(device), teacher.to(device), **nothing)
    assert not rows.any() and not gradient.any()


def test_more_classes_than_a_float_counts(device, sizes):
    row = torch.zeros(1, sizes.many_classes, device=device)
    row[0, -1] = -INF
    group = gkd.group(row, row, threshold=1.0)
    assert group.size.item() == sizes.many_classes - 1
    assert gkd.loss(row, row) == 0


def test_many_rows(device, sizes):
    student, teacher = logits((sizes.many_rows, 2), device=device)
    leaf = student.clone().requires_grad_()
    rows = gkd.loss(leaf, teacher, reduction="none", threshold=0.5)
    rows.sum().backward()
    last = [x[-5:].clone() for x in (student, teacher)]
    expected, gradient = value_and_gradient(*last, threshold=0.5)
    assert same_bits(rows[-5:].cpu(), expected)
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    assert error(leaf.grad[-5:].cpu() * weight.float(), gradient) <= 1e-6  # rounded once more


@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_rows(device, ignore_index, filled_with_nan):
    student, teacher = logits((4, 9), device=device)
    teacher[1] = NAN
    target = torch.tensor([5, ignore_index, 0, 8], device=device)
    leaf = student.clone().requires_grad_()
    mean = gkd.loss(leaf, teacher, target, ignore_index=ignore_index)
    gradient = gradient_of(mean, leaf, torch.tensor(2.0)).cpu()
    kept = torch.tensor([0, 2, 3], device=device)
    expected = gkd.loss(student[kept], teacher[kept], target[kept], ignore_index=ignore_index)
    assert torch.equal(mean.detach(), expected)
    assert not gradient[1].any() and gradient[0].any()
    everywhere = torch.full((4,), ignore_index, device=device)
    value = gkd.loss(leaf, teacher, everywhere, ignore_index=ignore_index)
    assert value == 0 and not gradient_of(value, leaf, torch.tensor(2.0)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ignored_rows_are_0_at_the_largest_weights(device, dtype):
    student, teacher = logits((3, 40), dtype, device)
    leaf = student.requires_grad_()
    weights = dict.fromkeys(("primary_weight", "binary_weight", "secondary_weight"), 1e30)
    target = torch.tensor([3, -100, -100], device=device)
    rows = gkd.loss(leaf, teacher, target, temperature=1e4, reduction="none", **weights)
    gradient = gradient_of(rows, leaf, torch.full_like(rows, 0.3))
    assert not rows[1:].any() and not gradient[1:].any()
