"""The dispatcher's view: opcheck of every operator, torch.compile and torch.export."""

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from oracle import same_bits

OPS = torch.ops.gkd


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_opcheck_loss(device, mode, needs_grad):
    settings, with_target = settings_of(mode)
    student, teacher = logits((3, 20), device=device)
    args = (student.requires_grad_(needs_grad), teacher)
    if with_target:
        args += (torch.tensor([1, -100, 4], device=device),)
    torch.library.opcheck(OPS.loss.default, args, {**settings, "reduction": "none"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_opcheck_the_rest(device, dtype):
    student, teacher = logits((3, 20), dtype, device)
    target = targets((3, 20), device)
    torch.library.opcheck(OPS.group.default, (student, teacher, target), {"return_mask": True})
    torch.library.opcheck(OPS.group.default, (student, teacher))
    for need_grad in (False, True):
        torch.library.opcheck(
            OPS._forward.default, (student, teacher, target), {"need_grad": need_grad}
        )
    _, gradient, grad_scale, *_ = OPS._forward(student, teacher, target)
    for grad_output in (torch.ones((), device=device), torch.rand(3, device=device)):
        torch.library.opcheck(OPS._scale.default, (gradient, grad_output, grad_scale))
    torch.library.opcheck(OPS._check_target.default, (target, 20, -100))


def step(student, teacher, target=None, **settings):
    return gkd.loss(student, teacher, target, **settings)


def run(function, *args, **settings):
    """Value and gradient, from a fresh leaf."""
    leaf = args[0].detach().clone().requires_grad_()
    value = function(leaf, *args[1:], **settings)
    (gradient,) = torch.autograd.grad(value.sum() * 3, leaf)
    return value.detach(), gradient


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(device, backend):
    if backend == "inductor" and device == "cuda":
        pytest.skip("generated kernels need a real device: the benchmark covers them")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for settings in ({}, {"reduction": "none", "group_size": 4, "check_target": True}):
        for shape in ((3, 20), (5, 33)):
            args = (*logits(shape, device=device), targets(shape, device))
            for got, wanted in zip(
                run(compiled, *args, **settings), run(step, *args, **settings), strict=True
            ):
                assert same_bits(got, wanted)
    with torch.no_grad():
        student, teacher = logits((3, 20), device=device)
        assert same_bits(compiled(student, teacher), step(student, teacher))


def test_compiled_check_is_not_dropped(device):
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    student, teacher = logits((3, 5), device=device)
    target = torch.tensor([0, 9, 1], device=device)
    with torch.no_grad(), pytest.raises(IndexError, match=r"target 9 .* 5 classes \(row 1\)"):
        compiled(student, teacher, target, check_target=True)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    alone = torch.compile(lambda t: OPS._check_target(t, 5, -100), fullgraph=True, backend=keep)
    with pytest.raises(IndexError, match="target 9"):
        alone(target)
    graphs[0].graph.eliminate_dead_code()
    assert any("_check_target" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exports(device, dynamic):
    student, teacher = logits((3, 20), device=device)
    target = targets((3, 20), device)
    names = [torch.export.Dim("b"), torch.export.Dim("c")]
    shapes = ({0: names[0], 1: names[1]}, {0: names[0], 1: names[1]}, {0: names[0]})
    exported = torch.export.export(
        gkd.GKDLoss(temperature=2.0),
        (student, teacher, target),
        dynamic_shapes=shapes if dynamic else None,
    )
    shape = (4, 31) if dynamic else (3, 20)
    student, teacher = logits(shape, device=device)
    target = targets(shape, device)
    expected = gkd.loss(student, teacher, target, temperature=2.0)
    assert same_bits(exported.module()(student, teacher, target), expected)


def test_meta_and_fake_tensors():
    for device in ("meta", "cpu"):
        with torch._subclasses.FakeTensorMode():
            student = torch.empty(4, 10, dtype=torch.half, device=device, requires_grad=True)
            teacher = torch.empty(4, 10, dtype=torch.float, device=device)
            target = torch.zeros(4, dtype=torch.long, device=device)
            rows = gkd.loss(student, teacher, target, reduction="none", check_target=True)
            assert rows.shape == (4,) and rows.dtype == torch.float32
            rows.sum().backward()
            assert student.grad.shape == (4, 10) and student.grad.dtype == torch.half
            group = gkd.group(student, teacher, return_mask=True)
            assert group.mask.shape == (4, 10) and group.size.dtype == torch.long


def test_schemas_name_what_they_take():
    text = str(OPS.loss.default._schema)
    assert text.startswith(
        "gkd::loss(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, "
    )
