"""gkd.training_loss as an operator: opcheck, torch.compile, export, autograd, memory."""

import inspect

import pytest
import torch

import gkd
from cases import targets
from gkd._settings import LossSettings
from gkd._training import TrainingSettings
from made import Made
from oracle import error, same_bits
from test_training_values import cosines

OPS = torch.ops.gkd
SETTINGS = {"scale": 64.0, "margin": 0.4}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(device, dtype, reduction):
    student, teacher = cosines((3, 20), 64.0, dtype, device)
    target, m = targets((3, 20), device), torch.full((3,), 0.3, device=device)
    weight = torch.full((), 0.5, device=device)
    keywords = {**SETTINGS, "reduction": reduction, "distill_margin": True}
    for tensors in ((), (m, weight)):
        for need in (False, True):
            args = (student.requires_grad_(need), teacher, target, *tensors)
            torch.library.opcheck(OPS.training_loss.default, args, keywords)
    # Margins and weight are constants, which opcheck's random tensors are as well.
    for need_grad in (False, True):
        args = (student.detach(), teacher, target, need_grad, True, m, weight)
        torch.library.opcheck(OPS._forward.default, args, keywords)


def step(student, teacher, target, weight, m):
    value = gkd.training_loss(
        student, teacher, target, scale=64.0, margin=m, distillation_weight=weight
    )
    return value.total, value.cross_entropy, value.distillation


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_weight_that_changes_compiles_once(device, backend):
    if backend == "inductor" and device == "cuda":
        pytest.skip("generated kernels need a real device: the benchmark covers them")
    count = torch._dynamo.testing.CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=count)
    student, teacher = cosines((3, 33), 64.0, torch.float32, device)
    target, m = targets((3, 33), device), torch.linspace(0.1, 0.4, 3, device=device)
    for k in range(4):
        weight = torch.full((), k / 4, device=device)
        leaf, plain = (student.clone().requires_grad_() for _ in range(2))
        value, wanted = (
            compiled(leaf, teacher, target, weight, m),
            step(plain, teacher, target, weight, m),
        )
        for a, b in zip(value, wanted, strict=True):
            assert same_bits(a, b)
        (3 * value[0]).backward()
        (3 * wanted[0]).backward()
        assert same_bits(leaf.grad, plain.grad)
    assert count.frame_count == 1


class Head(torch.nn.Module):
    """A module of a network, for export."""

    def __init__(self):
        super().__init__()
        self.loss = gkd.GKDTrainingLoss(**SETTINGS, rank_by="student")

    def forward(self, student, teacher, target, weight):
        return self.loss(student, teacher, target, distillation_weight=weight)


def test_exports(device):
    student, teacher = cosines((3, 33), 64.0, torch.float32, device)
    args = (student, teacher, targets((3, 33), device), torch.full((), 0.5, device=device))
    program = torch.export.export(Head(), args)
    for a, b in zip(program.module()(*args), Head()(*args), strict=True):
        assert same_bits(a, b)


def test_not_differentiable_twice(device):
    student, teacher = cosines((3, 33), 64.0, torch.float32, device)
    value = gkd.training_loss(
        student.requires_grad_(), teacher, targets((3, 33), device), **SETTINGS
    )
    (gradient,) = torch.autograd.grad(value.total, student, create_graph=True)
    with pytest.raises(NotImplementedError, match="gkd::training_loss is not differentiable twice"):
        gradient.pow(2).sum().backward()


def test_no_gradient_and_no_copy(device):
    """Beside the gradient no tensor has the size of the logits, and none without one."""
    student, teacher = cosines((4, 5000), 64.0, torch.float32, device)
    target = targets((4, 5000), device)
    with Made() as plain:
        gkd.training_loss(student, teacher, target, **SETTINGS)
    if device == "cpu":
        assert plain.largest <= 4
    leaf = student.requires_grad_()
    with Made() as seen:
        gkd.training_loss(leaf, teacher, target, **SETTINGS).total.backward()
    large = {name for name, shape in seen.made if shape == (4, 5000)}
    assert large <= {"gkd._forward", "gkd._scale", "aten.detach"}


def test_edits_after_the_loss(device):
    """Logits, margins and weight may change before the backward, as in PartialFC's code."""
    student, teacher = cosines((4, 500), 64.0, torch.float32, device)
    target, m = targets((4, 500), device), torch.full((4,), 0.3, device=device)
    weight = torch.full((), 0.5, device=device)
    leaf = student.clone().requires_grad_()
    copy = leaf * 1.0
    value = gkd.training_loss(
        copy, teacher, target, scale=64.0, margin=m, distillation_weight=weight
    )
    (wanted,) = torch.autograd.grad(value.total, leaf, retain_graph=True)
    with torch.no_grad():
        copy[:, 3] -= 0.35
        m.zero_()
        weight.zero_()
    (gradient,) = torch.autograd.grad(value.total, leaf)
    assert same_bits(gradient, wanted)


def test_signatures_show_every_setting_with_its_default():
    shown = inspect.signature(gkd.training_loss).parameters
    names = [*TrainingSettings.__annotations__, *LossSettings.__annotations__]
    schema = {x.name: x.default_value for x in OPS.training_loss.default._schema.arguments}
    for function in (
        gkd.training_loss,
        gkd.GKDTrainingLoss,
        gkd.reference.training_loss,
        gkd.training_linear_loss,
        gkd.distributed.training_loss,
        gkd.distributed.training_linear_loss,
    ):
        parameters = inspect.signature(function).parameters
        for name in names:
            assert shown[name].default == schema[name]
            # A linear loss has a scale of its own: 64 where it makes cosines.
            own = name == "scale" and "linear" in function.__name__
            default = None if own else schema[name]
            assert parameters[name].default == default
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_module_keeps_its_settings(device):
    student, teacher = cosines((4, 500), 64.0, torch.float32, device)
    target = targets((4, 500), device)
    criterion = gkd.GKDTrainingLoss(**SETTINGS, group_size=20)
    assert repr(criterion) == "GKDTrainingLoss(scale=64.0, margin=0.4, group_size=20)"
    value = criterion(student, teacher, target)
    expected = gkd.training_loss(student, teacher, target, **SETTINGS, group_size=20)
    assert same_bits(value.total, expected.total)
    criterion.margin = 0.2
    half = criterion(student, teacher, target, distillation_weight=0.5)
    expected = gkd.training_loss(
        student, teacher, target, scale=64.0, margin=0.2, group_size=20, distillation_weight=0.5
    )
    assert same_bits(half.total, expected.total)
    with pytest.raises(ValueError, match="scale"):
        gkd.GKDTrainingLoss(scale=-1.0)
    with pytest.raises(TypeError, match="smoothing"):
        gkd.GKDTrainingLoss(smoothing=0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["auto", "sort"])  # the fused kernels, and several
def test_graph_replays_with_another_weight(method):
    student, teacher = cosines((3, 200), 64.0, torch.float32, "cuda")
    target, weight = targets((3, 200), "cuda"), torch.ones((), device="cuda")
    margin = torch.full((3,), 0.4, device="cuda")
    settings = {"cross_entropy_weight": 1.0, "scale": 64.0, "method": method}

    def work():
        return OPS._forward(student, teacher, target, True, True, margin, weight, **settings)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for value in (0.25, 0.0, 3.0):
        weight.fill_(value)
        margin.fill_(value / 10)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [x.clone() for x in captured]
        assert all(same_bits(a, b) for a, b in zip(replayed, work(), strict=True))
        # A float in place of the tensor.
        alone = gkd.training_loss(student, teacher, target, scale=64.0, margin=value / 10)
        assert error(replayed[0], alone.cross_entropy + value * alone.distillation) <= 2e-6
