"""gkd.training_loss against cross-entropy and gkd.loss taken apart, in float64 and below."""

import pytest
import torch
import torch.nn.functional as F

import gkd
from cases import MODES, settings_of, targets
from oracle import BOUND, DTYPES, error, gradient_bound, reduce, same_bits
from training import cross_entropy_rows, expected_training

#: What a head adds to the settings of a loss: finished logits; CosFace; the authors; weights.
HEADS = {
    "logits": {},
    "cosines": {"scale": 64.0, "margin": 0.4},
    "authors": {"scale": 64.0, "margin": 0.4, "distill_margin": True},
    "weights": {"scale": 30.0, "cross_entropy_weight": 0.5, "distillation_weight": 2.5},
    "off": {"cross_entropy_weight": 0.0, "scale": 16.0},
}


def cosines(shape, scale, dtype=torch.float64, device="cpu"):
    """Student and teacher, whose logits times `scale` spread over about 20."""
    student = torch.randn(shape, dtype=torch.float64)
    teacher = student + 0.7 * torch.randn(shape, dtype=torch.float64)
    return tuple((x * 4 / scale).to(dtype).to(device) for x in (student, teacher))


def run(student, teacher, target, **settings):
    """The three values and the gradient, of a grad_output of its own in each row."""
    leaf = student.detach().clone().requires_grad_()
    value = gkd.training_loss(leaf, teacher, target, **settings)
    assert not value.cross_entropy.requires_grad and not value.distillation.requires_grad
    weight = torch.linspace(0.5, 1.5, max(1, value.total.numel())).reshape(value.total.shape)
    (gradient,) = torch.autograd.grad(value.total, leaf, weight.to(value.total))
    return value, gradient, weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_oracle(device, mode, head, dtype):
    settings, own = settings_of(mode)[0], HEADS[head]
    student, teacher = cosines((5, 211), own.get("scale", 1.0), dtype, device)
    target = targets((5, 211), device)
    rows, leaf = expected_training(student, teacher, target, {**settings, **own})
    value, gradient, weight = run(student, teacher, target, reduction="none", **settings, **own)
    (slope,) = torch.autograd.grad(rows[0], leaf, weight.double())
    expected = (rows[0], rows[1] * (own.get("cross_entropy_weight", 1) != 0), rows[2])
    for actual, wanted in zip(value, expected, strict=True):
        # A row's value may be much smaller than the terms that it is a sum of.
        assert error(actual, wanted) <= 5 * BOUND[dtype]
    # The stored gradient is rounded, and once more times its grad_output.
    bound = gradient_bound(dtype, 1.02) + (3 * BOUND[dtype] if own.get("distill_margin") else 0)
    assert error(gradient, slope) <= bound


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [(), (0,), (1, 3)], ids=str)
@pytest.mark.parametrize("margin", [0.0, 0.4, "per row"], ids=str)
def test_equals_the_usual_steps(device, sizes, margin, ignored, reduction):
    """F.cross_entropy of a scaled copy with margins, plus gkd.loss of another: 12 shapes."""
    for shape in sizes.parity:
        student, teacher = cosines(shape, 64.0, device=device)
        target = targets(shape, device)
        m = torch.linspace(0.1, 0.5, shape[0], device=device).double()
        m = m if margin == "per row" else margin
        for k in ignored:
            if k < shape[0]:
                target[k] = -100
        value, gradient, weight = run(
            student, teacher, target, scale=64.0, margin=m, reduction=reduction
        )
        leaf = student.cpu().requires_grad_()
        labels = target.cpu()
        column = torch.as_tensor(m, dtype=torch.float64).cpu().reshape(-1, 1)
        counted = labels != -100
        onehot = F.one_hot(labels.clamp(min=0), shape[1]) * counted.unsqueeze(1)
        entropy = cross_entropy_rows(64.0 * (leaf - column * onehot), labels.clamp(min=0)) * counted
        usual = F.cross_entropy(64.0 * (leaf - column * onehot), labels, reduction="none")
        assert (entropy - usual).abs().max() <= 1e-12 * 64
        distilled = gkd.loss(64.0 * leaf, 64.0 * teacher.cpu(), labels, reduction=reduction)
        parts = (reduce_counted(entropy, counted, reduction), distilled)
        (slope,) = torch.autograd.grad(sum(parts), leaf, weight.double())
        for actual, wanted in zip(value, (sum(parts), *parts), strict=True):
            assert error(actual, wanted) <= 1e-12, shape
        assert error(gradient, slope) <= 1e-12, shape


def reduce_counted(rows, counted, reduction):
    total = reduce(rows, "none" if reduction == "none" else "sum")
    return total / max(1, int(counted.sum())) if reduction == "mean" else total


def test_the_authors_step(device):
    """Their script in plain PyTorch: the margin in both networks, ranked by the student, a size of
    10,000 of 85,742 classes, weights 1 and 8, at T = 4."""
    classes, size = (85_742, 10_000) if device == "cpu" else (3_001, 350)
    student, teacher = cosines((2, classes), 64.0, device=device)
    target = targets((2, classes), device)
    value, gradient, weight = run(
        student,
        teacher,
        target,
        scale=64.0,
        margin=0.4,
        distill_margin=True,
        rank_by="student",
        group_size=size,
    )
    leaf = student.cpu().requires_grad_()
    onehot = F.one_hot(target.cpu(), classes).double()
    s, u = 64.0 * (leaf - 0.4 * onehot), 64.0 * (teacher.cpu() - 0.4 * onehot)
    order = s.detach().argsort(dim=1, descending=True)
    mask = torch.zeros_like(s).scatter_(1, order[:, :size], 1.0).maximum(onehot)
    p, q = (u / 4).softmax(1), (s / 4).softmax(1)
    mass = [torch.stack([(x * mask).sum(1), (x * (1 - mask)).sum(1)], 1) for x in (p, q)]
    binary = F.kl_div(mass[1].log(), mass[0], reduction="batchmean")
    hidden = -1000.0 * (1 - mask)
    primary = F.kl_div(
        ((s + hidden) / 4).log_softmax(1), ((u + hidden) / 4).softmax(1), reduction="batchmean"
    )
    distillation = 16 * (binary + 8 * primary)
    total = F.cross_entropy(s, target.cpu()) + distillation
    (slope,) = torch.autograd.grad(total, leaf, weight.double())
    assert error(value.distillation, distillation) <= 1e-11
    assert error(value.total, total) <= 1e-11
    assert error(gradient, slope) <= 1e-11


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 8.0])
def test_gradcheck(temperature, head):
    own = HEADS[head]
    student, teacher = cosines((3, 12), own.get("scale", 1.0))
    target = targets((3, 12))
    # By the student the group would move with the finite differences.
    settings = {"temperature": temperature, "secondary_weight": 0.5, **own}

    def total(x):
        return gkd.training_loss(x, teacher, target, reduction="none", **settings).total

    assert torch.autograd.gradcheck(total, student.requires_grad_())


def test_parts_take_no_weights(device):
    student, teacher = cosines((4, 100), 64.0, torch.float32, device)
    target = targets((4, 100), device)
    for weight in (0.0, 0.3, torch.tensor(0.0, device=device), torch.tensor(0.3, device=device)):
        settings = {"scale": 64.0, "margin": 0.2, "cross_entropy_weight": 0.7}
        value = gkd.training_loss(student, teacher, target, distillation_weight=weight, **settings)
        alone = gkd.training_loss(student, teacher, target, scale=64.0, margin=0.2)
        assert error(value.cross_entropy, alone.cross_entropy) <= 2e-6
        assert error(value.distillation, alone.distillation) <= 2e-6
        expected = 0.7 * alone.cross_entropy + float(weight) * alone.distillation
        assert error(value.total, expected) <= 2e-6


def test_without_the_rest_it_is_the_loss(device):
    student, teacher = cosines((4, 1000), 1.0, torch.float32, device)
    target = targets((4, 1000), device)
    value, gradient, weight = run(student, teacher, target, cross_entropy_weight=0.0)
    leaf = student.clone().requires_grad_()
    loss = gkd.loss(leaf, teacher, target)
    (slope,) = torch.autograd.grad(loss, leaf, weight.to(loss))
    assert error(value.total, loss) <= 1e-6 and error(gradient, slope) <= 2e-6
    assert same_bits(value.total, value.distillation) and value.cross_entropy == 0
    if device == "cpu":
        assert same_bits(value.total, loss.detach()) and same_bits(gradient, slope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_reference_agrees(head, dtype):
    own = HEADS[head]
    student, teacher = cosines((4, 300), own.get("scale", 1.0), dtype)
    target = targets((4, 300))
    target[1] = -100
    for reduction in ("mean", "none"):
        value, gradient, weight = run(student, teacher, target, reduction=reduction, **own)
        leaf = student.clone().requires_grad_()
        wanted = gkd.reference.training_loss(leaf, teacher, target, reduction=reduction, **own)
        (slope,) = torch.autograd.grad(wanted.total, leaf, weight.to(wanted.total))
        bound = 1e-11 if dtype == torch.float64 else 1e-4
        for a, b in zip(value, wanted, strict=True):
            assert error(a, b.to(a.dtype)) <= bound
        assert error(gradient, slope) <= bound
