"""Rows and settings at the edges of gkd.training_loss."""

import pytest
import torch

import gkd
from cases import targets
from oracle import BOUND, error, same_bits
from test_training_values import HEADS, cosines, run

SETTINGS = {"scale": 64.0, "margin": 0.4}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_bad_rows_stay_apart(device, head, dtype, filled_with_nan):
    own = HEADS[head]
    shape = (6, 300)
    student, teacher = cosines(shape, own.get("scale", 1.0), dtype, device)
    target = targets(shape, device)
    before, clean, _ = run(student, teacher, target, reduction="none", **own)
    student[1, 200] = float("nan")
    teacher[2, 3] = float("inf")
    student[3] = -float("inf")
    target[4] = -100
    student[4, :] = float("nan")
    value, gradient, _ = run(student, teacher, target, reduction="none", **own)
    assert value.total[1:4].isnan().all() and gradient[1:4].isnan().all()
    for part, old in zip(value, before, strict=True):
        assert part[4] == 0 and same_bits(part[[0, 5]], old[[0, 5]])
    if head != "off":
        assert value.cross_entropy[1:4].isnan().all()
    assert gradient[4].eq(0).all() and same_bits(gradient[[0, 5]], clean[[0, 5]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("head", ["logits", "authors", "off"])
def test_margins_that_are_no_number(device, head, bad):
    own = {**HEADS[head], "margin": torch.tensor([0.1, bad, 0.3], device=device)}
    student, teacher = cosines((3, 300), own.get("scale", 1.0), torch.float32, device)
    value, gradient, _ = run(student, teacher, targets((3, 300), device), reduction="none", **own)
    assert value.total[1].isnan() and gradient[1].isnan().all()
    assert value.total[[0, 2]].isfinite().all() and gradient[[0, 2]].isfinite().all()


def test_masked_classes(device):
    """-inf is a class of probability 0; a target of -inf has a loss of +inf."""
    student, teacher = cosines((3, 300), 1.0, torch.float64, device)
    target = torch.tensor([5, 6, 7], device=device)
    student[:, 100:], teacher[:, 100:] = -float("inf"), -float("inf")
    whole, gradient, _ = run(student, teacher, target, reduction="none")
    short, narrow, _ = run(
        student[:, :100].clone(), teacher[:, :100].clone(), target, reduction="none"
    )
    for a, b in zip(whole, short, strict=True):
        assert error(a, b) <= 1e-12
    assert error(gradient[:, :100], narrow) <= 1e-12 and gradient[:, 100:].eq(0).all()
    student[1, 6] = -float("inf")
    value, gradient, _ = run(
        student, teacher, target, reduction="none", distillation_weight=0.0, margin=0.3
    )
    assert value.total[1] == float("inf") and value.cross_entropy[1] == float("inf")
    assert gradient[1].isfinite().all() and value.total[[0, 2]].isfinite().all()
    # Of cross-entropy: q - 1 at the target, and the q of all others add up to 1.
    row = gradient[1] / gradient[1, 6].abs()
    assert abs(row.sum().item()) <= 1e-12


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_class_and_no_counted_row(device, reduction):
    student, teacher = cosines((3, 1), 1.0, torch.float32, device)
    target = torch.zeros(3, dtype=torch.int64, device=device)
    value, gradient, _ = run(student, teacher, target, reduction=reduction, **SETTINGS)
    assert all(not part.any() for part in value) and gradient.eq(0).all()
    student, teacher = cosines((3, 50), 1.0, torch.float32, device)
    target.fill_(-100)
    value, gradient, _ = run(student, teacher, target, reduction=reduction, **SETTINGS)
    assert all(not part.any() for part in value) and gradient.eq(0).all()
    student, teacher = cosines((0, 50), 1.0, torch.float32, device)
    value = gkd.training_loss(student, teacher, target[:0], reduction=reduction, **SETTINGS)
    assert all(part.numel() == 0 or part == 0 for part in value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_sure_row_keeps_its_digits(device, dtype):
    """A loss of 1e-20, where log sum exp minus the target is 0 or noise."""
    for gap in (1.0, 16.0, 40.0, 80.0):
        student = torch.zeros(1, 1000, dtype=dtype, device=device)
        student[0, 7] = gap
        value = gkd.training_loss(
            student, student.clone(), torch.tensor([7], device=device), margin=0.25
        )
        others = torch.tensor(999.0, dtype=torch.float64)
        expected = torch.log1p(others * torch.tensor(0.25 - gap, dtype=torch.float64).exp())
        assert abs(value.cross_entropy.item() / expected.item() - 1) <= BOUND[dtype]


@pytest.mark.parametrize("classes", [17, 3000])
@pytest.mark.parametrize("rank_by", ["teacher", "student"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_group_sees_the_margin(device, dtype, rank_by, classes):
    """Nothing rounds x_t - m to the dtype of the logits, in selection neither."""
    student, teacher = cosines((4, classes), 64.0, dtype, device)
    target = torch.stack((student, teacher))[int(rank_by == "teacher")].argmax(1)
    m = 0.0371
    shared = {"rank_by": rank_by, "threshold": 0.6, "reduction": "none"}
    value, gradient, weight = run(
        student, teacher, target, scale=64.0, margin=m, distill_margin=True, **shared
    )
    column = torch.arange(4, device=device)
    wide = [x.float() for x in (student, teacher)]
    for x in wide:
        x[column, target] -= m
    want, slope, _ = run(*(x * 64.0 for x in wide), target, **shared)
    assert error(value.total, want.total) <= 2e-5
    assert error(gradient.float(), 64.0 * slope) <= 2e-5 + (
        0 if dtype == torch.float32 else 2.0**-8
    )


@pytest.mark.parametrize("rank_by", ["teacher", "student"])
@pytest.mark.parametrize("how", [{"threshold": 0.6}, {"group_size": 40}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_methods_agree(device, dtype, how, rank_by):
    student, teacher = cosines((4, 3000), 64.0, dtype, device)
    target = teacher.argmax(1)
    results = [
        run(
            student,
            teacher,
            target,
            scale=64.0,
            margin=0.07,
            distill_margin=True,
            rank_by=rank_by,
            method=method,
            **how,
        )
        for method in ("select", "sort")
    ]
    (one, gradient, _), (other, slope, _) = results
    assert error(one.total, other.total) <= 2e-6 and error(gradient, slope) <= 2e-6


def test_float16_gradients_neither_underflow_nor_overflow(device):
    student, teacher = cosines((4, 1000), 64.0, torch.float16, device)
    target = targets((4, 1000), device)
    wide = (student.double(), teacher.double())
    for weights in ((1.0, 1.0), (1e-6, 1e-9), (1e6, 1.0), (1.0, 1e5)):
        own = {"cross_entropy_weight": weights[0], "scale": 64.0, "margin": 0.4}
        for weight in (weights[1], torch.tensor(weights[1], device=device)):
            leaf = student.clone().requires_grad_()
            total = gkd.training_loss(leaf, teacher, target, distillation_weight=weight, **own)
            scale = 2.0**-20 if max(weights) > 1 else 2.0**15
            (gradient,) = torch.autograd.grad(
                total.total, leaf, torch.tensor(scale).to(total.total)
            )
            exact = wide[0].clone().requires_grad_()
            want = gkd.training_loss(exact, wide[1], target, distillation_weight=weights[1], **own)
            (slope,) = torch.autograd.grad(want.total, exact)
            slope *= scale
            if slope.abs().max() < 6e4:
                assert error(gradient, slope) <= 2.0**-10


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"scale": 0.0}, ValueError, "scale"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"scale": 1e7}, ValueError, "scale"),
        ({"scale": "64"}, TypeError, "scale"),
        ({"margin": float("nan")}, ValueError, "margin"),
        ({"margin": torch.zeros(3)}, ValueError, "margin must be"),
        ({"margin": torch.zeros(4, dtype=torch.int64)}, TypeError, "margin"),
        ({"margin": torch.zeros(4).requires_grad_()}, ValueError, "margin.detach"),
        ({"distillation_weight": torch.zeros(4)}, ValueError, "distillation_weight must be"),
        ({"distillation_weight": torch.zeros(()).requires_grad_()}, ValueError, "detach"),
        ({"distillation_weight": float("inf")}, ValueError, "distillation_weight"),
        ({"cross_entropy_weight": float("nan")}, ValueError, "cross_entropy_weight"),
        ({"distill_margin": 1.5}, TypeError, "distill_margin"),
        ({"scale": 1e6, "primary_weight": 1e30, "temperature": 1e3}, ValueError, "product"),
        ({"smoothing": 0.1}, TypeError, "smoothing"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings, kind, words):
    student, teacher = cosines((4, 50), 1.0, torch.float32)
    with pytest.raises(kind, match=words):
        gkd.training_loss(student.requires_grad_(), teacher, targets((4, 50)), **settings)


def test_inputs_that_do_not_fit():
    student, teacher = cosines((4, 50), 1.0, torch.float32)
    with pytest.raises(TypeError, match="target must be a Tensor"):
        gkd.training_loss(student, teacher, None)
    with pytest.raises(TypeError):
        gkd.training_loss(student, teacher)
    with pytest.raises(ValueError, match="teacher_logits must not require grad"):
        gkd.training_loss(student, teacher.requires_grad_(), targets((4, 50)))
    with pytest.raises(IndexError, match=r"training_loss: target 50 .* \(row 2\)"):
        gkd.training_loss(student, teacher.detach(), torch.tensor([0, 1, 50, 3]))


def test_a_target_out_of_bounds(device):
    if device == "cpu":
        pytest.skip("raises there")
    student, teacher = cosines((4, 50), 1.0, torch.float32, device)
    target = torch.tensor([0, 1, 50, 3], device=device)
    for own in HEADS.values():
        value, gradient, _ = run(student, teacher, target, reduction="none", **own)
        assert value.total[2].isnan() and gradient[2].isnan().all()
        assert gradient[[0, 1, 3]].isfinite().all()


def test_leading_dimensions_and_strides(device):
    student, teacher = cosines((6, 77), 64.0, torch.float32, device)
    target, m = targets((6, 77), device), torch.linspace(0.1, 0.4, 6, device=device)
    flat, gradient, _ = run(student, teacher, target, scale=64.0, margin=m, reduction="none")
    value, shaped, _ = run(
        student.view(2, 3, 77),
        teacher.view(2, 3, 77),
        target.view(2, 3),
        scale=64.0,
        margin=m.view(2, 3),
        reduction="none",
    )
    assert value.total.shape == (2, 3) and same_bits(value.total.flatten(), flat.total)
    assert same_bits(shaped.reshape(6, 77), gradient)
    turned, across, _ = run(
        student.t().contiguous().t(),
        teacher.repeat_interleave(2, 1)[:, ::2],
        target,
        scale=64.0,
        margin=m.repeat_interleave(2)[::2],
        reduction="none",
    )
    assert error(turned.total, flat.total) <= 2e-6 and error(across, gradient) <= 2e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_on_any_number_of_threads(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = []
        for rows in (1, 5):
            torch.manual_seed(0)
            student, teacher = cosines((rows, 40_000), 64.0, torch.float32)
            results.append(run(student[:1], teacher[:1], torch.tensor([17]), **SETTINGS))
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(0)
    student, teacher = cosines((1, 40_000), 64.0, torch.float32)
    again = run(student, teacher, torch.tensor([17]), **SETTINGS)
    assert same_bits(again[0].total, results[0][0].total) and same_bits(again[1], results[0][1])
