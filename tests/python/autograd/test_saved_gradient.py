"""The gradient that a loss's forward keeps for its backward: nobody else sees it change."""

import contextlib

import numpy as np
import pytest
import torch
import torch.distributed as dist

import gkd
from cases import logits
from made import Made
from oracle import error, same_bits

CLASSES = 120


@pytest.fixture(params=["loss", "sharded", pytest.param("linear", marks=pytest.mark.products)])
def loss(request, device):
    """(loss of a leaf and nothing else, the leaf, its gradient for a grad_output of 1)."""
    student, teacher = logits((4, CLASSES), device=device)
    call = {"loss": lambda x: gkd.loss(x, teacher)}
    if request.param == "sharded":
        if device != "cpu":
            pytest.skip("one process of gloo has the CPU's tensors alone")
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        request.addfinalizer(dist.destroy_process_group)
        call["sharded"] = lambda x: gkd.distributed.loss(
            x, teacher, class_start=0, num_classes=CLASSES
        )
    if request.param == "linear":
        features, weight = torch.randn(4, 8, device=device), torch.randn(CLASSES, 16, device=device)
        student = torch.randn(CLASSES, 8, device=device)
        of_teacher = torch.randn(4, 16, device=device)
        call["linear"] = lambda x: gkd.linear_loss(features, x, of_teacher, weight)
    leaf = student.requires_grad_()
    (once,) = torch.autograd.grad(call[request.param](leaf), leaf, retain_graph=True)
    return call[request.param], leaf, once


class Memory:
    """Saved-tensor hooks that hand out memory of their own and remember what was in it."""

    def __init__(self, folder, way):
        self.folder, self.way, self.given = folder, way, []

    def pack(self, tensor):
        if self.way == "kept":
            self.given.append((tensor, tensor.clone()))
        return tensor

    def unpack(self, tensor):
        if self.way == "kept" or tensor.dim() < 2:
            return tensor
        if self.way == "mapped":  # read-only: a write ends the process
            np.save(self.folder / "saved.npy", tensor.cpu().numpy())
            return torch.from_numpy(np.load(self.folder / "saved.npy", mmap_mode="r"))
        if self.way == "strided":
            tensor = tensor.t().contiguous().t()
        if self.way == "view":
            tensor = torch.cat([tensor, tensor])[: len(tensor)]
        self.given.append((tensor, tensor.clone()))
        return tensor


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("way", ["kept", "mapped", "strided", "view"])
def test_memory_of_saved_tensor_hooks_stays_as_it_was(loss, way, tmp_path, device):
    if way == "mapped" and device != "cpu":
        pytest.skip("a memory map is the CPU's")
    call, leaf, once = loss
    memory = Memory(tmp_path, way)
    with torch.autograd.graph.saved_tensors_hooks(memory.pack, memory.unpack):
        value = call(leaf)
    (gradient,) = torch.autograd.grad(3 * value, leaf)
    assert error(gradient, 3 * once) <= 1e-6
    gradient.zero_()  # as an optimizer might
    assert memory.given or way == "mapped"
    for now, before in memory.given:
        assert same_bits(now, before)


def test_memory_that_somebody_else_has_seen_stays_as_it_was(loss):
    call, leaf, once = loss

    with Made(keep=True) as made:
        value = call(leaf)
    # What changes later, in the forward itself, is none of the backward's doing.
    at_loss = [(x, x.clone()) for x in made.kept]
    (gradient,) = torch.autograd.grad(3 * value, leaf)
    assert error(gradient, 3 * once) <= 1e-6
    for now, before in at_loss:
        assert same_bits(now, before)


@pytest.mark.parametrize("retain", [False, True])
def test_a_backward_that_fails_halfway_is_not_repeated_on_a_scaled_gradient(loss, retain):
    call, leaf, once = loss
    value = call(leaf)

    def fail(*_):
        raise ArithmeticError("a hook")

    handle = value.grad_fn.register_hook(fail)
    with pytest.raises(ArithmeticError):
        torch.autograd.grad(3 * value, leaf, retain_graph=retain)
    handle.remove()
    if retain:
        assert error(torch.autograd.grad(3 * value, leaf)[0], 3 * once) <= 1e-6
    else:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(3 * value, leaf)


@pytest.mark.parametrize("retain", [False, True])
def test_second_derivative_is_an_error_however_the_graph_is_kept(loss, retain):
    call, leaf, once = loss
    value = call(2 * leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True, retain_graph=retain)
    assert gradient.shape == once.shape
    penalty = gradient.pow(2).sum() + leaf.pow(2).sum()
    with pytest.raises(NotImplementedError, match=r"^gkd[.:]+\w+ is not differentiable twice"):
        penalty.backward()


def test_logits_may_change_after_the_loss_was_taken(loss):
    call, leaf, _ = loss
    (expected,) = torch.autograd.grad(call(leaf * 1.0), leaf)
    hidden = leaf * 1.0
    value = call(hidden)
    hidden[:, 3] -= 0.35
    (gradient,) = torch.autograd.grad(value, leaf)
    assert same_bits(gradient, expected)


@pytest.mark.parametrize("grad_output", [1.0, 2.0**16, 3.0])
def test_forward_and_backward_take_one_buffer(grad_output):
    student, teacher = logits((4, 100_000))
    leaf = student.requires_grad_()
    factor = torch.tensor(grad_output)
    buffer = leaf.numel() * leaf.element_size()
    # With hooks, the measure itself: whatever they return is not written to.
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    for way, buffers in ((torch.no_grad(), 0), (contextlib.nullcontext(), 1), (hooks, 2)):
        with torch.profiler.profile(profile_memory=True) as profile:
            with way:
                value = gkd.loss(leaf, teacher)
            if value.requires_grad:
                value.backward(factor)
        made = sum(max(0, e.self_cpu_memory_usage) for e in profile.key_averages())
        assert buffers * buffer <= made <= buffers * buffer + buffer // 10
        leaf.grad = None
