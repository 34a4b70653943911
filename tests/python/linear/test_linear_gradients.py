"""gkd.linear_loss: memory, work left out, graphs kept and compiled."""

import contextlib
import copy

import pytest
import torch

import gkd
from cases import targets
from linear_reference import D_S, SCALE, B, C, gradients, networks, unfused
from made import Made
from oracle import BOUND, error, same_bits

pytestmark = pytest.mark.products


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", [0, 1], ids=["features", "weight"])
def test_a_frozen_side_costs_nothing(device, frozen, reduction):
    net = networks(device)
    both = gkd.linear_loss(*net, chunk_rows=3, reduction=reduction)
    grad_output = torch.randn(both.shape)
    expected = gradients(both, net[:2], grad_output)[1 - frozen]
    net[frozen].requires_grad_(False)
    shape = net[frozen].shape
    with Made() as seen:
        value = gkd.linear_loss(*net, chunk_rows=3, reduction=reduction)
        (got,) = gradients(value, (net[1 - frozen],), grad_output)
    assert same_bits(got, expected)
    assert ("aten.zeros", shape) not in seen.made
    assert ("aten.zeros", net[1 - frozen].shape) in seen.made


@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "frozen"])
def test_no_gradient_work_without_a_gradient(device, way):
    net = networks(device)
    expected = gkd.linear_loss(*net, chunk_rows=3).detach()
    net[0].requires_grad_(way != "frozen")
    net[1].requires_grad_(way != "frozen")
    guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with guard.get(way, torch.enable_grad)(), Made() as seen:
        value = gkd.linear_loss(*net, chunk_rows=3)
    assert same_bits(value, expected) and not value.requires_grad
    assert ("gkd._forward", (3, C)) not in seen.made
    assert not any(name == "aten.addmm_" for name, _ in seen.made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_of_the_logits_size(device, dtype, reduction):
    # Many rows of few features, so that [B, C] is by far the largest shape there could be.
    net = networks(device, dtype, rows=64, classes=500)
    with Made() as seen:
        value = gkd.linear_loss(*net, chunk_rows=4, reduction=reduction)
        gradients(value, net[:2], torch.ones_like(value))
    assert seen.largest <= max(4 * 500, 500 * D_S)
    with Made() as seen:  # the measure itself
        unfused(*net)
    assert seen.largest >= 64 * 500


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inputs_stay_as_they_are_and_bits_repeat(device, reduction):
    net, target = networks(device, torch.float32), targets((B, C), device)
    before, results = copy.deepcopy([*net, target]), []
    for _ in range(2):
        value = gkd.linear_loss(*net, target, chunk_rows=3, reduction=reduction)
        results.append((value, *gradients(value, net[:2], torch.ones_like(value))))
    assert all(same_bits(a, b) for a, b in zip(before, (*net, target), strict=True))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_retain_graph_with_two_grad_outputs(device, reduction):
    net = networks(device)
    value = gkd.linear_loss(*net, scale=SCALE, chunk_rows=3, reduction=reduction)
    usual = unfused(*net, reduction=reduction)
    first, second = torch.randn((2, *value.shape))
    one = torch.autograd.grad(value, net[:2], first.to(value), retain_graph=True)
    kept = copy.deepcopy(one)
    two = gradients(value, net[:2], second)  # nothing follows: written in place
    for grad_output, got in ((first, one), (second, two)):
        wanted = torch.autograd.grad(usual, net[:2], grad_output.to(value), retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert error(a, b) <= 1e-12
    assert all(same_bits(a, b) for a, b in zip(one, kept, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(value, net[:2], first)


def test_a_weight_edited_between_the_passes_is_reported(device):
    """Where the backward makes the logits again; with "mean" it does not need the weight."""
    net = networks(device)
    value = gkd.linear_loss(*net, reduction="none").sum()
    with torch.no_grad():
        net[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_not_differentiable_twice(device, reduction):
    net = networks(device)
    value = gkd.linear_loss(*net, reduction=reduction).sum()
    (to_weight,) = torch.autograd.grad(value, net[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_loss is not differentiable twice"):
        to_weight.sum().backward()


def test_no_forward_derivative(device):
    f, w, g, v = networks(device)
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        dual = torch.autograd.forward_ad.make_dual(f.detach(), torch.ones_like(f))
        gkd.linear_loss(dual, w.detach(), g, v)


def test_meta_tensors():
    net = [x.to("meta").detach().requires_grad_(x.requires_grad) for x in networks("cpu")]
    value = gkd.linear_loss(*net, chunk_rows=3)
    assert value.shape == () and gradients(value, net[:2], value)[1].shape == (C, D_S)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_break(device, reduction, dtype):
    net, target = networks(device, dtype), targets((B, C), device)

    def function(f, w):
        return gkd.linear_loss(f, w, *net[2:], target, chunk_rows=3, reduction=reduction)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = [
        (loss, *gradients(loss, net[:2], torch.ones(loss.shape)))
        for loss in (compiled(*net[:2]), function(*net[:2]))
    ]
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 10 * BOUND[dtype]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", ["teacher", "features"])
def test_tensors_of_inference_mode(device, reduction, frozen):
    """Embeddings of a frozen network, made under inference_mode."""
    net = networks(device)
    target = targets((B, C), device)
    expected = gkd.linear_loss(*net, target, reduction=reduction)
    grad_output = torch.randn(expected.shape)
    wanted = gradients(expected, net[:2], grad_output)
    with torch.inference_mode():
        made = [x.clone() for x in (*net, target)]
    wants = (0, 1) if frozen == "teacher" else (1,)
    given = [net[k] if k in wants else made[k] for k in range(4)]
    value = gkd.linear_loss(*given, made[4], reduction=reduction)
    got = gradients(value, [net[k] for k in wants], grad_output)
    for k, gradient in zip(wants, got, strict=True):
        assert same_bits(gradient, wanted[k])


def test_batched_gradients(device):
    net = networks(device)
    rows = gkd.linear_loss(*net, reduction="none")
    with pytest.raises(NotImplementedError, match="gkd.linear_loss has no batched gradients"):
        torch.autograd.grad(rows, net[0], torch.eye(B).to(rows), is_grads_batched=True)
    mean = gkd.linear_loss(*net)
    factors = torch.tensor([1.0, -2.0]).to(mean)
    (got,) = torch.autograd.grad(mean, net[0], factors, is_grads_batched=True, retain_graph=True)
    (once,) = torch.autograd.grad(mean, net[0])
    assert error(got, torch.stack([once, -2 * once])) <= 1e-12


@pytest.mark.parametrize("grad_output", [1.0, 2.0**16])
def test_forward_and_backward_take_one_gradient_of_the_weight(grad_output):
    net = networks("cpu", torch.float32, classes=20_000)
    net[0].requires_grad_(False)
    buffer = net[1].numel() * net[1].element_size()
    peaks = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    for hooked, way in ((False, contextlib.nullcontext()), (True, hooks)):
        with way:
            value = gkd.linear_loss(*net, chunk_rows=1)
        with torch.profiler.profile(profile_memory=True) as profile:
            value.backward(torch.tensor(grad_output))
        peaks[hooked] = sum(max(0, e.self_cpu_memory_usage) for e in profile.key_averages())
        net[1].grad = None
    assert peaks[False] < 2**16 < buffer <= peaks[True]
