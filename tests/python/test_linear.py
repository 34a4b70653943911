"""gkd.linear_loss against heads that make their logits: values, gradients, memory, errors.

Sizes: 7 rows, so that chunks of 3 leave a remainder; 33 classes, more than the largest group asked
for, and an odd number; 6 and 5 features, so that the networks cannot be mistaken for each other.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import gkd
from cases import MODES, settings_of, targets
from gkd import _head
from oracle import BOUND, ULP, error, same_bits

B, C, D_S, D_T = 7, 33, 6, 5
CHUNKS = (1, 3, B, B + 4, None)
SCALE = 20.0  # no power of two


def networks(device, dtype=torch.float64, rows=B, classes=C):
    """Student features and weight, which need gradients, and the teacher's."""
    shapes = (rows, D_S), (classes, D_S), (rows, D_T), (classes, D_T)
    f, w, g, v = (torch.randn(shape).to(dtype).to(device) for shape in shapes)
    return f.requires_grad_(), w.requires_grad_(), g, v


def unfused(f, w, g, v, target=None, *, scale=SCALE, normalize=True, **settings):
    """What linear_loss stands for."""
    unit = functools.partial(F.normalize, dim=1) if normalize else (lambda x: x)
    student, teacher = (scale * unit(a) @ unit(b).t() for a, b in ((f, w), (g, v)))
    return gkd.loss(student, teacher, target, **settings)


def gradients(loss, leaves, grad_output):
    return torch.autograd.grad(loss, leaves, grad_output.to(loss))


def compare(net, target, bound, chunks=CHUNKS, **settings):
    """Value and both gradients against `unfused`, for a random grad_output."""
    expected = unfused(*net, target, **settings)
    grad_output = torch.randn(expected.shape, dtype=torch.float64) * 3
    wanted = (expected, *gradients(expected, net[:2], grad_output))
    settings.setdefault("scale", SCALE)
    for chunk_rows in chunks:
        value = gkd.linear_loss(*net, target, chunk_rows=chunk_rows, **settings)
        assert value.dtype == expected.dtype
        for got, want in zip((value, *gradients(value, net[:2], grad_output)), wanted, strict=True):
            assert got.dtype == want.dtype
            assert error(got, want) <= bound, chunk_rows


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


@pytest.mark.parametrize("slab", [1, 4 * D_S, 2**20])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_slabs_of_any_size(device, monkeypatch, slab, reduction):
    monkeypatch.setattr(_head, "SLAB_ELEMENTS", {True: slab, False: slab})
    compare(networks(device), None, 1e-12, reduction=reduction)
    assert_half_no_worse(device, torch.bfloat16, reduction=reduction, group_size=C)


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


def outcomes(net, exact, grad_output, **settings):
    """(value, gradient, gradient) in float64, by the steps in net's dtypes, and by linear_loss."""
    for leaves, loss in (
        (exact, unfused(*exact, **settings)),
        (net, unfused(*net, **settings)),
        (net, gkd.linear_loss(*net, chunk_rows=3, **{"scale": SCALE, **settings})),
    ):
        yield (loss, *gradients(loss, leaves[:2], grad_output))


def exactly(net):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in net]


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


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", [0, 1], ids=["features", "weight"])
def test_a_frozen_side_costs_nothing(device, frozen, reduction):
    net = networks(device)
    both = gkd.linear_loss(*net, chunk_rows=3, reduction=reduction)
    grad_output = torch.randn(both.shape)
    expected = gradients(both, net[:2], grad_output)[1 - frozen]
    net[frozen].requires_grad_(False)
    shape = net[frozen].shape
    with Shapes() as seen:
        value = gkd.linear_loss(*net, chunk_rows=3, reduction=reduction)
        (got,) = gradients(value, (net[1 - frozen],), grad_output)
    assert same_bits(got, expected)
    assert ("aten.zeros", shape) not in seen.made
    assert ("aten.zeros", net[1 - frozen].shape) in seen.made


class Shapes(TorchDispatchMode):
    """Which operator made which shapes in memory, and the elements of the largest."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor) and part.device.type != "meta":
                self.made.add((str(function.overloadpacket), part.shape))
        return result

    @property
    def largest(self):
        return max(shape.numel() for _, shape in self.made)


@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "frozen"])
def test_no_gradient_work_without_a_gradient(device, way):
    net = networks(device)
    expected = gkd.linear_loss(*net, chunk_rows=3).detach()
    net[0].requires_grad_(way != "frozen")
    net[1].requires_grad_(way != "frozen")
    guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with guard.get(way, torch.enable_grad)(), Shapes() as seen:
        value = gkd.linear_loss(*net, chunk_rows=3)
    assert same_bits(value, expected) and not value.requires_grad
    assert ("gkd._forward", (3, C)) not in seen.made
    assert not any(name == "aten.addmm_" for name, _ in seen.made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_of_the_logits_size(device, dtype, reduction):
    # Many rows of few features, so that [B, C] is by far the largest shape there could be.
    net = networks(device, dtype, rows=64, classes=500)
    with Shapes() as seen:
        value = gkd.linear_loss(*net, chunk_rows=4, reduction=reduction)
        gradients(value, net[:2], torch.ones_like(value))
    assert seen.largest <= max(4 * 500, 500 * D_S)
    with Shapes() as seen:  # the measure itself
        unfused(*net)
    assert seen.largest >= 64 * 500


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


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inputs_stay_as_they_are_and_bits_repeat(device, reduction):
    net, target = networks(device, torch.float32), targets((B, C), device)
    before, results = copy.deepcopy([*net, target]), []
    for _ in range(2):
        value = gkd.linear_loss(*net, target, chunk_rows=3, reduction=reduction)
        results.append((value, *gradients(value, net[:2], torch.ones_like(value))))
    assert all(same_bits(a, b) for a, b in zip(before, (*net, target), strict=True))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_a_weight_edited_between_the_passes_is_reported(device):
    net = networks(device)
    value = gkd.linear_loss(*net)
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


def shapes(**changed):
    """Networks of which some tensors are replaced by fresh ones of another shape."""
    net = dict(zip("fwgv", networks("cpu", torch.float32), strict=True))
    return [*{**net, **{k: torch.randn(shape) for k, shape in changed.items()}}.values()]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (shapes(f=(B,)), "expected 2-D [B, D] student_features, got 1-D"),
        (shapes(v=(C, 2, 2)), "expected 2-D [C, D] teacher_weight, got 3-D"),
        (shapes(w=(C, 4)), "student_weight must be [C, 6], got [33, 4]"),
        (shapes(v=(C, 4)), "teacher_weight must be [C, 5], got [33, 4]"),
        (shapes(g=(4, D_T)), "teacher_features must have 7 rows as student_features, got 4"),
        (shapes(v=(9, D_T)), "teacher_weight must have 33 classes as student_weight, got 9"),
        (shapes(w=(0, D_S), v=(0, D_T)), "needs at least one class, got [7, 0]"),
    ],
)
def test_errors_of_shape(net, message):
    with pytest.raises(ValueError) as raised:
        gkd.linear_loss(*net)
    assert str(raised.value).startswith(f"gkd::linear_loss: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_rows": 0}, "chunk_rows must be >= 1, got 0"),
        ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
        ({"scale": float("nan")}, "scale must be finite and > 0, got nan"),
        ({"temperature": -1.0}, "temperature must be finite and > 0, got -1"),
        ({"reduction": "max"}, "reduction must be none, mean or sum, got max"),
        ({"rank_by": "both"}, "rank_by must be teacher or student, got both"),
        ({"threshold": 0.5, "group_size": 2}, "give one of threshold and group_size, got"),
        ({"target": torch.zeros(3, dtype=torch.long)}, "target must be [7], got [3]"),
    ],
)
def test_errors_of_settings(settings, message):
    with pytest.raises(ValueError) as raised:
        gkd.linear_loss(*shapes(), **settings)
    assert str(raised.value).startswith(f"gkd::linear_loss: {message}")


def test_other_errors():
    net = shapes()
    with pytest.raises(TypeError, match="student_features must be float16, .* got torch.int64"):
        gkd.linear_loss(net[0].long(), *net[1:])
    with pytest.raises(TypeError, match="teacher_weight must be torch.float32 as teacher_features"):
        gkd.linear_loss(*net[:3], net[3].half())
    with pytest.raises(TypeError, match="linear_loss: target must be int64 or int32"):
        gkd.linear_loss(*net, torch.zeros(B))
    with pytest.raises(RuntimeError, match="must be on one device, got cpu and meta"):
        gkd.linear_loss(*net[:3], net[3].to("meta"))
    with pytest.raises(NotImplementedError, match="teacher_weight must be a dense"):
        gkd.linear_loss(*net[:3], net[3].to_sparse())
    target = torch.zeros(B, dtype=torch.long)
    target[5] = C
    message = rf"gkd::linear_loss: target {C} is out of bounds for {C} classes \(row 5\)"
    with pytest.raises(IndexError, match=message):
        gkd.linear_loss(*net, target, chunk_rows=2)
    for n, name in ((2, "features"), (3, "weight")):
        needs = [x.clone().requires_grad_() if k == n else x for k, x in enumerate(net)]
        with pytest.raises(ValueError, match=f"pass teacher_{name}.detach"):
            gkd.linear_loss(*needs)
        with torch.no_grad():
            gkd.linear_loss(*needs)


def test_meta_tensors():
    net = [x.to("meta").detach().requires_grad_(x.requires_grad) for x in shapes()]
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
