"""What autograd, torch.func, subclasses and layouts may do with the operator, and the errors where
they may not."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import gkd
from cases import logits, targets
from oracle import same_bits


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 1)], ids=str)
def test_vmap_is_a_loop(device, in_dims):
    many = logits((3, 2, 5), device=device)
    args = [x if d is not None else x[0] for x, d in zip(many, in_dims, strict=True)]
    for reduction in ("mean", "none"):

        def function(s, t, reduction=reduction):
            return gkd.loss(s, t, reduction=reduction, group_size=2, secondary_weight=1.0)

        rows = torch.func.vmap(function, in_dims=in_dims)(*args)
        length = next(x.shape[d] for x, d in zip(args, in_dims, strict=True) if d is not None)
        for k, got in enumerate(rows):
            one = [x if d is None else x.select(d, k) for x, d in zip(args, in_dims, strict=True)]
            assert same_bits(got, function(*one))
        assert len(rows) == length


def test_vmap_keeps_the_gradient(device):
    student, teacher = logits((3, 2, 5), device=device)
    leaf = student.clone().requires_grad_()
    weight = torch.tensor([2.0, -1.0, 0.5], device=device)
    rows = torch.func.vmap(gkd.loss)(leaf, teacher)
    (gradient,) = torch.autograd.grad(rows, leaf, weight)
    for k in range(3):
        one = student[k].clone().requires_grad_()
        (expected,) = torch.autograd.grad(gkd.loss(one, teacher[k]), one, weight[k])
        assert same_bits(gradient[k], expected)


FUNCTIONAL = {
    "grad": lambda f, s: torch.func.grad(f)(s),
    "vjp": lambda f, s: torch.func.vjp(f, s),
    "jacrev": lambda f, s: torch.func.jacrev(f)(s),
    "per-sample grad": lambda f, s: torch.func.vmap(torch.func.grad(f))(torch.stack([s, s])),
}


@pytest.mark.parametrize("transform", FUNCTIONAL)
def test_functional_gradients_are_refused(device, transform):
    student, teacher = logits((2, 5), device=device)
    text = r"^gkd\.loss: torch\.func\.grad, vjp and jacrev are not supported; gkd\.reference"
    with pytest.raises(NotImplementedError, match=text):
        FUNCTIONAL[transform](lambda s: gkd.loss(s, teacher), student)
    assert FUNCTIONAL[transform](lambda s: gkd.reference.loss(s, teacher), student) is not None


def test_constant_under_a_functional_gradient(device):
    """Nothing is asked of the loss itself: it is a number like others."""
    student, teacher = logits((2, 5), device=device)
    value = gkd.loss(student, teacher)
    slope = torch.func.grad(lambda x: x * gkd.loss(student, teacher))(torch.ones_like(value))
    assert same_bits(slope, value)


def test_no_forward_mode(device):
    student, teacher = logits((2, 5), device=device)
    for wrt in (0, 1):

        def function(x, wrt=wrt):
            return gkd.loss(x, teacher) if wrt == 0 else gkd.loss(student, x)

        for transform in (
            lambda f: torch.func.jvp(f, (student,), (teacher,)),
            lambda f: torch.func.jacfwd(f)(student),
        ):
            with pytest.raises(
                NotImplementedError, match="^gkd.loss: there is no forward-mode derivative; gkd.ref"
            ):
                transform(function)


class Tagged(torch.Tensor):
    """A subclass without behaviour of its own."""


def test_subclasses_dispatch(device):
    student, teacher = logits((3, 40), device=device)
    value = gkd.loss(student.as_subclass(Tagged), teacher)
    assert isinstance(value, Tagged)
    assert same_bits(value.as_subclass(torch.Tensor), gkd.loss(student, teacher))
    leaf = torch.nn.Parameter(student)
    value = gkd.loss(leaf, teacher)
    value.backward()
    assert same_bits(value, gkd.loss(student, teacher)) and leaf.grad.shape == student.shape


@pytest.fixture
def mesh(device):
    """Two ranks, of which this process is one and the other is nobody."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh(device, (2,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_dtensors_are_not_unwrapped(mesh, device, placement):
    here = logits((4, 40), device=device)
    student, teacher = (distribute_tensor(x, mesh, [placement]) for x in here)
    for call in (gkd.loss, gkd.group, gkd.reference.loss):
        for leaf in (student, student.detach().requires_grad_()):
            with pytest.raises(TypeError, match=r"^gkd[.\w]+: student_logits is a DTensor: pass"):
                call(leaf, teacher)
        with pytest.raises(TypeError, match=r"^gkd[.\w]+: student_logits is a DTensor: pass"):
            call(student, here[1])
        with pytest.raises(TypeError, match=r"^gkd[.\w]+: teacher_logits is a DTensor: pass"):
            call(here[0], teacher)
    with pytest.raises(TypeError, match=r"student_logits is a DTensor"):
        gkd.adaptive_group_size(student)


def layouts():
    dense = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]])
    return {
        "SparseCPU": dense.to_sparse(),
        "SparseCsrCPU": dense.to_sparse_csr(),
        "MkldnnCPU": dense.to_mkldnn(),
        "QuantizedCPU": torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8),
        "NestedTensorCPU": torch.nested.nested_tensor([dense[0], dense[1, :3]]),
    }


@pytest.mark.parametrize("backend", layouts())
def test_layouts_are_refused_by_name(backend):
    odd, dense = layouts()[backend], torch.zeros(2, 4)
    text = f"^Could not run 'gkd::\\w+' with arguments from the '{backend}' backend"
    for call in (gkd.loss, gkd.group):
        for args in ((odd, dense), (dense, odd), (odd, odd)):
            with pytest.raises(NotImplementedError, match=text):
                call(*args)
    target = targets((2, 4)).to_sparse()
    with pytest.raises(NotImplementedError, match="^Could not run 'gkd::_forward' .*SparseCPU"):
        gkd.loss(dense, dense, target)
