"""gkd.linear_loss against heads that make their logits: values and gradients."""

import pytest
import torch

import gkd
from cases import MODES, settings_of, targets
from gkd import _head
from linear_reference import D_S, B, C, compare, gradients, networks
from oracle import BOUND, error, same_bits

pytestmark = pytest.mark.products


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_steps(device, mode, normalize, reduction):
    settings, with_target = settings_of(mode)
    target = targets((B, C), device) if with_target else None
    how = {"normalize": normalize, "reduction": reduction, **settings}
    compare(networks(device), target, 1e-12, **how)
    single = networks(device, torch.float32)
    compare(single, target, 3 * BOUND[torch.float32], chunks=(3,), **how)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [(0,), (2, 3, 4), range(B)], ids=["one", "a chunk", "all"])
def test_ignored_rows(device, ignored, reduction):
    net, target = networks(device), targets((B, C), device)
    target[list(ignored)] = -7
    compare(net, target, 1e-12, reduction=reduction, ignore_index=-7)
    with torch.no_grad():  # whatever they hold
        net[0][list(ignored)] = float("nan")
        net[2][list(ignored)] = float("inf")
    value = gkd.linear_loss(*net, target, chunk_rows=3, reduction=reduction, ignore_index=-7)
    for gradient in gradients(value, net[:2], torch.ones_like(value)):
        assert gradient.isfinite().all()
    assert value.isfinite().all() and (gradient.any() == (len(ignored) < B))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(device, reduction):
    net = networks(device, rows=0)
    for chunk_rows in (2, None):
        value = gkd.linear_loss(*net, chunk_rows=chunk_rows, reduction=reduction)
        assert value.shape == ((0,) if reduction == "none" else ()) and not value.any()
        to_features, to_weight = gradients(value, net[:2], torch.ones_like(value))
        assert to_features.shape == (0, D_S) and same_bits(to_weight, torch.zeros_like(net[1]))


@pytest.mark.parametrize("chunk_elements", [1, 4 * D_S, 2**20])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_of_any_size(device, monkeypatch, chunk_elements, reduction):
    monkeypatch.setattr(_head, "CHUNK_ELEMENTS", {True: chunk_elements, False: chunk_elements})
    compare(networks(device), None, 1e-12, reduction=reduction)


def test_rows_without_a_norm(device):
    # Divided by 1e-12 as F.normalize does, with no gradient through that; and just above it.
    net = networks(device)
    with torch.no_grad():
        net[0][1], net[1][4], net[2][2], net[3][5] = 0, 0, 0, 0
        net[0][2] *= 1e-14
        net[1][6] *= 1e-14
        net[1][7] *= 3e-12 / net[1][7].norm()
    for reduction in ("mean", "none"):
        compare(net, None, 1e-12, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "plain"])
def test_gradcheck(device, normalize, reduction):
    # Ranked by the teacher and of fixed size, the group does not jump; the loss is smooth.
    f, w, g, v = networks(device, rows=3, classes=7)

    def function(f, w):
        return gkd.linear_loss(
            f, w, g, v, scale=3.0, normalize=normalize, chunk_rows=2, reduction=reduction,
            group_size=3, secondary_weight=1.0,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, (f, w))


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_strides(device, layout):
    net = networks(device)
    if layout == "transposed":
        odd = [x.detach().t().contiguous().t() for x in net]
    else:
        odd = [torch.stack([x.detach()] * 2, 2)[:, :, 0] for x in net]
    odd = [x.requires_grad_(n < 2) for n, x in enumerate(odd)]
    wanted = gradients(gkd.linear_loss(*net, chunk_rows=3), net[:2], torch.tensor(1.0))
    got = gradients(gkd.linear_loss(*odd, chunk_rows=3), odd[:2], torch.tensor(1.0))
    for a, b in zip(got, wanted, strict=True):
        assert error(a, b) <= 1e-12


def test_networks_of_two_dtypes(device):
    net = networks(device, torch.float32)
    wide = [x if n < 2 else x.double() for n, x in enumerate(net)]
    compare(wide, None, 3 * BOUND[torch.float32], chunks=(3,))
