"""Faults that gkd.loss once had, of gkd.training_loss and its siblings."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gkd
from cases import targets
from linear_reference import B, C, networks
from oracle import error, same_bits
from test_training_values import cosines, run

SETTINGS = {"scale": 64.0, "margin": 0.4}


def batch():
    return *cosines((4, 500), 64.0, torch.float32), targets((4, 500))


def test_saved_gradient_in_read_only_memory(tmp_path):
    student, teacher, target = batch()
    _, wanted, weight = run(student, teacher, target, **SETTINGS)
    count = itertools.count()

    def pack(tensor):
        name = tmp_path / f"{next(count)}.npy"
        np.save(name, tensor.detach().numpy())
        return name

    def unpack(name):
        return torch.from_numpy(np.load(name, mmap_mode="r"))

    leaf = student.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        value = gkd.training_loss(leaf, teacher, target, **SETTINGS)
    (gradient,) = torch.autograd.grad(value.total, leaf, 3 * weight.to(value.total))
    assert error(gradient, 3 * wanted) <= 1e-6


def test_saved_gradient_comes_back_strided():
    student, teacher, target = batch()
    _, wanted, weight = run(student, teacher, target, **SETTINGS)
    leaf = student.requires_grad_()
    turned = (lambda x: x, lambda x: x.t().contiguous().t() if x.dim() == 2 else x)
    with torch.autograd.graph.saved_tensors_hooks(*turned):
        value = gkd.training_loss(leaf, teacher, target, **SETTINGS)
    (gradient,) = torch.autograd.grad(value.total, leaf, 3 * weight.to(value.total))
    assert error(gradient, 3 * wanted) <= 1e-6


def test_second_derivative_without_a_retained_graph():
    student, teacher, target = batch()
    x = student.requires_grad_()
    value = gkd.training_loss(2 * x, teacher, target, **SETTINGS)
    (gradient,) = torch.autograd.grad(value.total, x, create_graph=True, retain_graph=False)
    with pytest.raises(NotImplementedError, match="twice"):
        (gradient.pow(2).sum() + x.pow(2).sum()).backward()


def test_a_setting_that_requires_grad():
    student, teacher, target = batch()
    for name in ("scale", "cross_entropy_weight", "temperature"):
        parameter = torch.nn.Parameter(torch.tensor(3.0))
        with pytest.raises(TypeError, match=name):
            gkd.training_loss(student, teacher, target, **{name: parameter})


def test_float16_gradient_at_tiny_settings():
    student, teacher = cosines((2, 40), 1.0, torch.float16)
    for settings in (
        {"cross_entropy_weight": 1e-30, "distillation_weight": 1e-30, "temperature": 1e-6},
        {"cross_entropy_weight": 0.0, "distillation_weight": 0.0},
        {"scale": 1e-6, "cross_entropy_weight": 1e-30, "primary_weight": 1e-30},
    ):
        _, gradient, _ = run(student, teacher, targets((2, 40)), **settings)
        assert gradient.isfinite().all(), settings


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_settings_at_both_ends(dtype, scale, temperature):
    student, teacher = cosines((3, 700), 1.0, dtype)
    settings = {"scale": scale, "temperature": temperature, "margin": 0.01, "reduction": "none"}
    value, gradient, weight = run(student, teacher, targets((3, 700)), **settings)
    assert all(part.isfinite().all() for part in value) and gradient.isfinite().all()
    leaf = student.double().requires_grad_()
    wanted = gkd.reference.training_loss(leaf, teacher.double(), targets((3, 700)), **settings)
    assert wanted.total.shape == value.total.shape


def test_teacher_of_inference_mode_in_training_linear_loss():
    f, w, *_ = networks("cpu", torch.float32)
    with torch.inference_mode():
        teacher = torch.randn(B, 5), torch.randn(C, 5)
        margin = torch.full((B,), 0.3)
    value = gkd.training_linear_loss(
        f, w, *teacher, targets((B, C)), margin=margin, reduction="none"
    )
    value.total.sum().backward()
    assert f.grad.isfinite().all()


def test_batched_gradients_of_training_linear_loss():
    net = networks("cpu", torch.float32)
    rows = gkd.training_linear_loss(*net, targets((B, C)), reduction="none").total
    with pytest.raises(NotImplementedError, match="linear_loss has no batched gradients"):
        torch.autograd.grad(rows, net[0], torch.eye(B), is_grads_batched=True)


def test_process_group_started_again():
    student, teacher, target = batch()
    for _ in range(2):
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        try:
            where = {"class_start": 0, "num_classes": 600}
            with pytest.raises(ValueError, match="num_classes"):
                gkd.distributed.training_loss(student, teacher, target, **where)
            where["num_classes"] = 500
            gkd.distributed.training_loss(student, teacher, target, **where)
        finally:
            dist.destroy_process_group()


def test_default_threshold_beside_a_size():
    """A threshold of exactly the default is given all the same: here it decides the group."""
    student, teacher, target = batch()
    threshold, size, rows = {"threshold": 0.93}, {"group_size": 450}, {"reduction": "none"}
    for function in (gkd.training_loss, torch.ops.gkd.training_loss):

        def distillation(function=function, **settings):
            return function(student, teacher, target, scale=64.0, **rows, **settings)[2]

        assert same_bits(distillation(**threshold, **size), distillation(**threshold))
        assert not (distillation(**threshold) == distillation(**size)).any()


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def sharded_over_one_rank(tensor):
    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])


def test_dtensor_weight_outside_its_module(one_rank):
    features, weight, *teacher = (x.detach() for x in networks("cpu", torch.float32))
    head = sharded_over_one_rank(weight)
    with pytest.raises(TypeError, match=r"training_linear_loss: student_weight is a DTensor"):
        gkd.training_linear_loss(features, head, *teacher, targets((B, C)))
    for name in ("margin", "distillation_weight"):
        value = sharded_over_one_rank(torch.full((1,), 0.3))
        with pytest.raises(TypeError, match=rf"{name} is a DTensor: pass {name}.full_tensor\(\)"):
            gkd.training_linear_loss(features, weight, *teacher, targets((B, C)), **{name: value})
    # What the message says to call takes such a head.
    teacher[1] = sharded_over_one_rank(teacher[1])
    value = gkd.distributed.training_linear_loss(features, head, *teacher, targets((B, C)))
    assert value.total.isfinite()
