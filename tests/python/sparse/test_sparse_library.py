"""gkd.sparse_loss as an operator: opcheck, torch.compile, export, autograd, memory, module."""

import copy
import pickle

import pytest
import torch

import gkd
from cases import targets
from made import Made
from oracle import error, same_bits
from processes import python
from sparse import on, pair, with_gradient

OPS = torch.ops.gkd
HALF = torch.float16


def case(shape=(3, 20), dtype=torch.float64, **settings):
    student, teacher = pair("flat", shape, dtype)
    target = targets(shape)
    return student, gkd.teacher_group(teacher, target, group_size=5, **settings), target


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(device, dtype, reduction):
    student, kept, target = on(device, *case(dtype=dtype))
    factors = torch.full((3,), 0.3, device=device), torch.full((), 0.5, device=device)
    for need in (False, True):
        leaf = student.detach().requires_grad_(need)
        torch.library.opcheck(OPS.sparse_loss.default, (leaf, *kept), {"reduction": reduction})
        torch.library.opcheck(
            OPS.training_sparse_loss.default,
            (leaf, *kept, target, *factors),
            {"reduction": reduction, "scale": 2.0},
        )
        torch.library.opcheck(
            OPS._sparse_forward.default, (student.detach(), *kept, target, need, True)
        )


def test_opcheck_of_the_group():
    student, _, target = case()
    torch.library.opcheck(OPS.teacher_group.default, (student, target), {"group_size": 3})
    torch.library.opcheck(OPS.teacher_group.default, (student, None, torch.float16, 20))


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_gradcheck(temperature):
    student, kept, target = case((3, 12), temperature=temperature)
    leaf = student.requires_grad_()
    settings = {"temperature": temperature, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda x: gkd.sparse_loss(x, kept, **settings), leaf)
    assert torch.autograd.gradcheck(
        lambda x: (
            gkd.training_sparse_loss(
                x, kept, target, scale=1.5, margin=0.2, distillation_weight=0.5, **settings
            ).total
        ),
        leaf,
    )


def test_compiles_whole_with_groups_of_any_size():
    count = torch._dynamo.testing.CompileCounter()

    def step(student, kept, target):
        parts = gkd.training_sparse_loss(student, kept, target, margin=0.1)
        return gkd.sparse_loss(student, kept, target) + parts.total

    compiled = torch.compile(step, backend=count, fullgraph=True, dynamic=True)
    for shape, size in (((3, 20), 5), ((4, 33), 2), ((6, 50), 9)):
        student, teacher = pair("flat", shape, torch.float32)
        target = targets(shape)
        kept = gkd.teacher_group(teacher, target, group_size=size)
        got, gradient = with_gradient(lambda s, k=kept, t=target: compiled(s, k, t), student)
        wanted, slope = with_gradient(lambda s, k=kept, t=target: step(s, k, t), student)
        assert same_bits(got, wanted) and same_bits(gradient, slope)
    assert count.frame_count == 1


def test_compiles_with_the_teacher_in_the_graph():
    def step(student, teacher):
        return gkd.sparse_loss(student, gkd.teacher_group(teacher, group_size=4))

    student, teacher = pair("flat", (3, 30))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got, gradient = with_gradient(lambda s: compiled(s, teacher), student)
    wanted, slope = with_gradient(lambda s: step(s, teacher), student)
    assert same_bits(got, wanted) and same_bits(gradient, slope)


class Head(torch.nn.Module):
    """A module of a network, for export."""

    def __init__(self):
        super().__init__()
        self.loss = gkd.GKDSparseLoss(coupled=True)

    def forward(self, student, indptr, indices, logits, rest):
        return self.loss(student, gkd.TeacherGroup(indptr, indices, logits, rest))


def test_exports():
    student, kept, _ = case()
    auto = torch.export.Dim.AUTO
    shapes = tuple({0: auto} for _ in range(5))
    program = torch.export.export(Head(), (student, *kept), dynamic_shapes=shapes)
    assert same_bits(program.module()(student, *kept), Head()(student, *kept))
    student, kept, _ = case((7, 20))
    assert same_bits(program.module()(student, *kept), Head()(student, *kept))


def test_derivatives_that_there_are_not():
    student, kept, target = case()
    leaf = student.clone().requires_grad_()
    for call, name in (
        (lambda x: gkd.sparse_loss(x, kept), "sparse_loss"),
        (lambda x: gkd.training_sparse_loss(x, kept, target).total, "training_sparse_loss"),
    ):
        (gradient,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
        text = f"gkd::{name} is not differentiable twice"
        with pytest.raises(NotImplementedError, match=text):
            gradient.pow(2).sum().backward()
        text = f"gkd.{name}: there is no forward-mode derivative; gkd.reference.sparse_loss has"
        with pytest.raises(NotImplementedError, match=text):
            torch.func.jvp(call, (student,), (student,))
        with pytest.raises(NotImplementedError, match=f"gkd.{name}: torch.func.grad"):
            torch.func.grad(call)(student)
    _, tangent = torch.func.jvp(
        lambda x: gkd.reference.sparse_loss(x, kept), (student,), (torch.ones_like(student),)
    )
    assert tangent.abs() < 1e-12  # the loss does not see a constant added to a row
    for margin, weight in ((torch.zeros(3), 1.0), (0.0, torch.ones(()))):
        factors = [x.requires_grad_() for x in (margin, weight) if isinstance(x, torch.Tensor)]
        assert len(factors) == 1
        with pytest.raises(ValueError, match="must not require grad"):
            gkd.training_sparse_loss(
                student, kept, target, margin=margin, distillation_weight=weight
            )


def test_vmap():
    student, kept, _ = case()
    both = torch.stack([student, student * 0.5])
    got = torch.func.vmap(lambda x: gkd.sparse_loss(x, kept))(both)
    for k in range(2):
        assert same_bits(got[k], gkd.sparse_loss(both[k], kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_backward_uses_any_grad_output(device, dtype):
    student, kept, _ = on(device, *case((4, 300), dtype))
    leaf = student.clone().requires_grad_()
    rows = gkd.sparse_loss(leaf, kept, reduction="none")
    weight = torch.tensor([0.0, 1.0, -2.0, 0.25]).to(rows)
    (once,) = torch.autograd.grad(rows, leaf, torch.ones_like(rows), retain_graph=True)
    (got,) = torch.autograd.grad(rows, leaf, weight, retain_graph=True)
    (again,) = torch.autograd.grad(rows, leaf, weight)
    assert same_bits(got, again)
    # A float16 gradient is kept at a larger scale, and rounded after it is multiplied.
    assert error(got, once * weight.to(dtype).unsqueeze(1)) <= (2e-3 if dtype == HALF else 0.0)
    total = gkd.sparse_loss(leaf * 1.0, kept)
    total.backward()
    assert leaf.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="second time|freed"):
        total.backward()


def test_inputs_may_change_after_the_loss():
    student, kept, target = case((4, 300), torch.float32)
    before = [x.clone() for x in (student, *kept)]
    leaf = student.clone().requires_grad_()
    moved = leaf * 1.0
    value = gkd.training_sparse_loss(moved, kept, target).total
    (wanted,) = torch.autograd.grad(value, leaf, retain_graph=True)
    assert all(same_bits(a, b) for a, b in zip(before, (student, *kept), strict=True))
    with torch.no_grad():
        moved.zero_()
        kept.logits.zero_()
    assert same_bits(torch.autograd.grad(value, leaf)[0], wanted)


def test_every_output_is_written(device, filled_with_nan):
    for dtype in (torch.float16, torch.float32, torch.float64):
        for classes in (1, 5, 300, 20_000):
            student, kept, target = on(device, *case((3, classes), dtype))
            target[1] = -100
            for function in (
                lambda s, k=kept, t=target: gkd.sparse_loss(s, k, t, reduction="none"),
                lambda s, k=kept, t=target: gkd.training_sparse_loss(s, k, t),
            ):
                value, gradient = with_gradient(function, student)
                values = value if isinstance(value, tuple) else (value,)
                assert all(x.isfinite().all() for x in values) and gradient.isfinite().all()
                assert not gradient[1].any()


def test_no_gradient_and_no_copy():
    """Beside the gradient no tensor has the size of the logits, and none without one."""
    student, kept, target = case((4, 5000), torch.float32)
    with Made() as plain:
        gkd.sparse_loss(student, kept, target)
        gkd.training_sparse_loss(student, kept, target, scale=2.0, margin=0.1)
    assert plain.largest <= kept.indices.numel()
    leaf = student.requires_grad_()
    with Made() as seen:
        gkd.training_sparse_loss(leaf, kept, target, margin=0.1).total.backward()
        gkd.sparse_loss(leaf, kept, target).backward()
    large = {name for name, shape in seen.made if shape.numel() >= 20_000}
    assert large <= {"gkd._sparse_forward", "gkd._scale", "aten.detach", "aten.add_", "aten.add"}


MEMORY = """
import sys
from pathlib import Path
import torch, gkd

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))

torch.set_num_threads(2)
rows, classes, size = map(int, sys.argv[1:])
student, teacher = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)
kept = gkd.teacher_group(teacher, group_size=size)
del teacher
small = torch.randn(1, classes, requires_grad=True)
one = gkd.TeacherGroup(kept.indptr[:2], kept.indices[: kept.indptr[1]],
                       kept.logits[: kept.indptr[1]], kept.rest[:1])
gkd.sparse_loss(small, one).backward()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
gkd.sparse_loss(student, kept).backward()
print(status("VmHWM") - before - 4 * rows * classes)
"""


@pytest.mark.parametrize(("classes", "size"), [(85_742, 1000), (151_936, 64), (151_936, 10**6)])
def test_memory_is_the_gradient_and_one_mib(classes, size):
    out, _ = python("-c", MEMORY, "24", str(classes), str(size))
    assert int(out) <= 2**20, f"{int(out) / 2**20:.2f} MiB over the gradient"


def test_module_keeps_its_settings():
    student, kept, target = case()
    criterion = gkd.GKDSparseLoss(temperature=2.0, coupled=True, ignore_index=-1)
    assert repr(criterion) == (
        "GKDSparseLoss(temperature=2.0, primary_weight=8.0, binary_weight=1.0, coupled=True, "
        "reduction='mean', ignore_index=-1)"
    )
    for made in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        got = made(student, kept, target)
        wanted = gkd.sparse_loss(student, kept, target, temperature=2.0, coupled=True)
        assert same_bits(got, wanted)
    criterion.primary_weight = 0.0
    wanted = gkd.sparse_loss(student, kept, temperature=2.0, coupled=True, primary_weight=0.0)
    assert same_bits(criterion(student, kept), wanted)
    assert not list(criterion.parameters()) and not criterion.state_dict()
