"""What only a CUDA device has: streams, graphs, the current device, no waiting for the host."""

import pytest
import torch

import gkd
from cases import logits, targets
from oracle import error, same_bits

pytestmark = pytest.mark.cuda

#: One way to find the cut each, all of which must be capturable.
SETTINGS = [{}, {"group_size": 7}, {"rank_by": "student", "secondary_weight": 0.5}]


def step(student, teacher, target, **settings):
    leaf = student.detach().requires_grad_()
    value = gkd.loss(leaf, teacher, target, **settings)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def on_cuda(shape, dtype=torch.float32):
    return (*logits(shape, dtype, "cuda"), targets(shape, "cuda"))


def test_two_streams_at_once():
    batches = [on_cuda((3, 400)) for _ in range(2)]
    expected = [step(*batch) for batch in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    results = []
    for stream, batch in zip(streams, batches, strict=True):
        with torch.cuda.stream(stream):
            results.append(step(*batch))
    torch.cuda.synchronize()
    for got, wanted in zip(results, expected, strict=True):
        assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("need_grad", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_graph_replays_on_new_data(settings, need_grad):
    # The inner operators: while an emulated graph is captured, PyTorch's own are not recorded.
    student, teacher, target = on_cuda((3, 200))
    grad_output = torch.full((), 3.0, device="cuda")

    def work():
        loss, gradient, grad_scale, *_ = torch.ops.gkd._forward(
            student, teacher, target, need_grad=need_grad, **settings
        )
        if not need_grad:
            return (loss,)
        return loss, torch.ops.gkd._scale(gradient, grad_output, grad_scale)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # warm up: first uses allocate and load
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for _ in range(3):
        fresh = on_cuda((3, 200))
        for static, new in zip((student, teacher, target), fresh, strict=True):
            static.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [x.clone() for x in captured]
        assert all(same_bits(a, b) for a, b in zip(replayed, work(), strict=True))


def test_nothing_waits_for_the_device():
    args = on_cuda((3, 200))
    step(*args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*args)
        gkd.group(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_device_that_is_not_current():
    args = [x.to("cuda:1") for x in on_cuda((3, 200))]
    with torch.cuda.device(0):
        value, gradient = step(*args)
        assert torch.cuda.current_device() == 0
    assert value.device == gradient.device == torch.device("cuda:1")
    wanted = step(*[x.to("cuda:0") for x in args])
    assert same_bits(value, wanted[0]) and same_bits(gradient, wanted[1])


def sorts_in_turn(student, teacher, target):
    """(what must agree to the bit, losses and gradients), torch's sorts and gkd's mixed."""
    exact, close = [], []
    for dtype in (torch.float32, torch.float64, torch.float16):
        s, t = student.to(dtype), teacher.to(dtype)
        exact += t.sort(dim=1, descending=True, stable=True)
        exact += [gkd.group(s, t, target, method="sort").size]
        exact += [(8 * t).round().long().cumsum(1)]
        exact += [gkd.group(s, t, group_size=5, method="sort").cut]
        exact += t.reshape(-1).sort(stable=True)
        leaf = s.requires_grad_()
        value = gkd.loss(leaf, t, target, method="sort")
        close += [value.detach(), *torch.autograd.grad(value, leaf)]
    return exact, close


@pytest.mark.parametrize("shape", [(40, 9), (3, 1500), (1, 2000)], ids=str)
def test_torchs_sorts_and_gkds_take_turns(shape):
    """Both bring CUB and Thrust, and of one name the dynamic linker keeps what was loaded first.

    Rows that each sorts in ways of its own: for warps, for blocks, and one row alone.
    """
    args = (*logits(shape), targets(shape))
    exact, close = sorts_in_turn(*(x.cuda() for x in args))
    wanted_exact, wanted_close = sorts_in_turn(*args)
    for got, wanted in zip(exact, wanted_exact, strict=True):
        assert same_bits(got, wanted)
    for got, wanted in zip(close, wanted_close, strict=True):
        bound = 4e-6 + (2.0**-10 if wanted.dtype == torch.float16 else 0.0)
        assert error(got, wanted) <= bound
