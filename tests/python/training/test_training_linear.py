"""gkd.training_linear_loss against gkd.training_loss of cosines that exist."""

import pytest
import torch
import torch.nn.functional as F

import gkd
from cases import MODES, settings_of, targets
from linear_reference import B, C, networks
from made import Made
from oracle import BOUND, error, same_bits

pytestmark = pytest.mark.products


def steps(net, target, scale=64.0, normalize=True, **settings):
    """The same with cosines, or products, of [B, C]."""
    unit = F.normalize if normalize else (lambda x: x)
    student, teacher = (F.linear(unit(f), unit(w)) for f, w in (net[:2], net[2:]))
    return gkd.training_loss(student, teacher.detach(), target, scale=scale, **settings)


def gradients(value, net, factor):
    return torch.autograd.grad(value.total, net[:2], factor.to(value.total), retain_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_steps(device, mode, normalize, reduction):
    settings, target = settings_of(mode)[0], targets((B, C), device)
    target[1] = -100
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        net = networks(device, dtype)
        how = {
            "normalize": normalize,
            "reduction": reduction,
            "margin": torch.linspace(0.1, 0.4, B, device=device),
            "distillation_weight": torch.full((), 0.5, device=device),
            "distill_margin": mode == "authors",
            **settings,
        }
        scale = 64.0 if normalize else 0.5
        wanted = steps(net, target, scale, **how)
        factor = torch.linspace(0.5, 1.5, B, device=device)
        factor = factor if reduction == "none" else factor[0]
        for chunk_rows in (None, 2):
            given = {**how, "chunk_rows": chunk_rows}
            value = gkd.training_linear_loss(*net, target, scale=scale, **given)
            for a, b in zip(value, wanted, strict=True):
                assert error(a, b) <= bound
            assert not value.cross_entropy.requires_grad and not value.distillation.requires_grad
            found, truth = (gradients(x, net, factor) for x in (value, wanted))
            for a, b in zip(found, truth, strict=True):
                assert error(a, b) <= bound


def test_scale_is_64_unless_given(device):
    net, target = networks(device), targets((B, C), device)
    value = gkd.training_linear_loss(*net, target)
    assert same_bits(value.total, gkd.training_linear_loss(*net, target, scale=64.0).total)
    value = gkd.training_linear_loss(*net, target, normalize=False)
    plain = gkd.training_linear_loss(*net, target, normalize=False, scale=1.0)
    assert same_bits(value.total, plain.total)


def test_no_matrix_of_logits(device):
    net = networks(device, torch.float32)
    target = targets((B, C), device)
    with Made() as seen:
        gkd.training_linear_loss(*net, target, chunk_rows=2, margin=0.4).total.backward()
    assert (B, C) not in {shape for _, shape in seen.made}


def test_under_autocast(device):
    net, target = networks(device, torch.float32), targets((B, C), device)
    with torch.autocast(device, torch.bfloat16):
        value = gkd.training_linear_loss(*net, target, margin=0.4)
        wanted = steps(net, target, margin=0.4)
    assert value.total.dtype == torch.float32
    assert error(value.total, wanted.total) <= 2e-2


def test_a_warm_up_between_forward_and_backward(device):
    """With "none" the backward makes the chunks again, with the weight and the margins that the
    forward had: an edit in between is an error, as of any saved tensor."""
    net, target = networks(device, torch.float32), targets((B, C), device)
    weight = torch.full((), 0.5, device=device)
    rows = gkd.training_linear_loss(*net, target, distillation_weight=weight, reduction="none")
    weight.fill_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows.total.sum().backward()


def test_errors_name_the_function():
    net, target = networks("cpu", torch.float32), targets((B, C))
    call = gkd.training_linear_loss
    for settings, kind, words in (
        ({"scale": 0.0}, ValueError, "scale must be finite and > 0"),
        ({"margin": torch.zeros(B + 1)}, ValueError, "margin must be"),
        ({"margin": torch.zeros(B).requires_grad_()}, ValueError, "margin.detach"),
        ({"distillation_weight": torch.zeros(2)}, ValueError, "distillation_weight must be"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"smoothing": 1.0}, TypeError, "smoothing"),
    ):
        with pytest.raises(kind, match=words) as raised:
            call(*net, target, **settings)
        assert str(raised.value).startswith("gkd.training_linear_loss: ")
    with pytest.raises(TypeError, match="target must be a Tensor"):
        call(*net, None)
    with pytest.raises(IndexError, match="target"):
        call(*net, torch.full((B,), C))


def test_compiles(device):
    net, target = networks(device, torch.float32), targets((B, C), device)
    weight = torch.full((), 0.5, device=device)

    def step(*tensors):
        return gkd.training_linear_loss(*tensors[:4], target, distillation_weight=tensors[4]).total

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for k in range(3):
        weight.fill_(k / 2)
        assert error(compiled(*net, weight), step(*net, weight)) <= BOUND[torch.float32]
