"""gkd.linear_loss in float16, bfloat16 and under autocast."""

import pytest
import torch

import gkd
from gkd import _head
from linear_reference import D_S, SCALE, B, C, gradients, networks, unfused
from oracle import ULP, error, same_bits

pytestmark = pytest.mark.products


def exactly(net):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in net]


def outcomes(net, exact, grad_output, **settings):
    """(value, gradient, gradient) in float64, by the steps in net's dtypes, and by linear_loss."""
    for leaves, loss in (
        (exact, unfused(*exact, **settings)),
        (net, unfused(*net, **settings)),
        (net, gkd.linear_loss(*net, chunk_rows=3, **{"scale": SCALE, **settings})),
    ):
        yield (loss, *gradients(loss, leaves[:2], grad_output))


def assert_half_no_worse(device, dtype, draws=5, **settings):
    """Over some draws, at most 1.5 times the errors of the steps, and a rounding of the result."""
    ours, usual = torch.zeros(3), torch.zeros(3)
    for _ in range(draws):
        net = networks(device, dtype)
        rows = (B,) if settings["reduction"] == "none" else ()
        truth, by_steps, got = outcomes(net, exactly(net), torch.randn(rows), **settings)
        assert [x.dtype for x in got] == [x.dtype for x in by_steps]
        ours += torch.tensor([error(a, b) for a, b in zip(got, truth, strict=True)])
        usual += torch.tensor([error(a, b) for a, b in zip(by_steps, truth, strict=True)])
    assert (ours <= 1.5 * usual + draws * ULP[dtype]).all(), (ours, usual)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "plain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_is_no_worse_than_the_steps(device, dtype, normalize, reduction):
    # A group of fixed size by the same teacher logits: rounding does not choose another.
    for weights in ({}, {"primary_weight": 0.01, "binary_weight": 0.0}, {"primary_weight": 300.0}):
        assert_half_no_worse(
            device,
            dtype,
            scale=SCALE if normalize else 1.0,
            normalize=normalize,
            reduction=reduction,
            group_size=C,
            **weights,
        )


def test_float16_gradients_do_not_underflow(device):
    # A row's gradient of 1e-7 is a few of the dtype's least steps: in float16 sums it would go.
    net = networks(device, torch.float16)
    for reduction in ("mean", "none"):
        small = torch.full((B,) if reduction == "none" else (), 1e-7)
        runs = outcomes(net, exactly(net), small, reduction=reduction, group_size=C)
        truth, _, got = ([1e7 * x.double() for x in run] for run in runs)
        for a, b in zip(got[1:], truth[1:], strict=True):
            assert (a - b).abs().max() <= 0.02 * b.abs().max() + 1e7 * 2.0**-25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(device, dtype, reduction):
    # Logits in autocast's dtype, gradients in the leaves'; float64 is left alone, as by F.linear.
    settings = {"reduction": reduction, "group_size": C}
    net = networks(device, torch.float32)
    exact = exactly(net)
    with torch.autocast(device, dtype=dtype):
        usual = unfused(*net, **settings)
        value = gkd.linear_loss(*net, scale=SCALE, chunk_rows=3, **settings)
        wide = gkd.linear_loss(*exact, scale=SCALE, chunk_rows=3, **settings)
    assert value.dtype == torch.float32
    truth = unfused(*exact, **settings)
    assert error(wide, truth) <= 1e-12
    grad_output = torch.randn(truth.shape)
    runs = [
        (loss, *gradients(loss, leaves, grad_output))
        for loss, leaves in ((truth, exact[:2]), (usual, net[:2]), (value, net[:2]))
    ]
    for want, by_steps, got in zip(*runs, strict=True):
        assert got.dtype == by_steps.dtype
        assert 1e-5 < error(got, want) <= 1.5 * error(by_steps, want) + 2 * ULP[dtype]
    with torch.autocast(device, dtype=dtype):  # a backward inside changes nothing
        inside = gkd.linear_loss(*net, scale=SCALE, chunk_rows=3, **settings)
        again = gradients(inside, net[:2], grad_output)
    assert all(same_bits(a, b) for a, b in zip(again, runs[2][1:], strict=True))


@pytest.mark.parametrize("chunk_elements", [1, 4 * D_S])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_chunks_of_any_size(device, monkeypatch, chunk_elements, reduction):
    monkeypatch.setattr(_head, "CHUNK_ELEMENTS", {True: chunk_elements, False: chunk_elements})
    assert_half_no_worse(device, torch.bfloat16, reduction=reduction, group_size=C)
