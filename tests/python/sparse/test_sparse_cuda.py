"""What a CUDA device alone has: bad groups without an exception, graphs, and no synchronisation."""

import pytest
import torch

import gkd
from cases import targets
from oracle import error, same_bits
from sparse import GROUPINGS, KINDS, edited, on, pair, with_gradient

pytestmark = pytest.mark.cuda
OPS = torch.ops.gkd


def case(shape=(4, 300), dtype=torch.float32):
    student, teacher = pair("flat", shape, dtype)
    target = targets(shape)
    return student, gkd.teacher_group(teacher, target, group_size=5), target


BAD = {
    "index too large": {"indices": {-1: 300}},
    "index below 0": {"indices": {-1: -1}},
    "twice": {"indices": {-1: 0}},
    "rest NaN": {"rest": {3: float("nan")}},
    "rest +inf": {"rest": {3: float("inf")}},
    "ends early": {"indptr": {4: 19}},
    "leads beyond": {"indptr": {4: 2**40}},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", [*BAD, "target"])
def test_a_bad_row_is_nan_alone(how, dtype):
    """Its numbers are on the device: the CPU's exceptions would wait for them."""
    student, kept, target = case(dtype=dtype)
    wanted, slope = with_gradient(
        lambda s: gkd.sparse_loss(s, on("cuda", kept), target.cuda(), reduction="none"),
        student.cuda(),
    )
    if how == "target":
        row = kept.indices[kept.indptr[3] :].tolist()
        target[3] = min(set(range(300)) - set(row))
        bad = kept
    else:
        bad = edited(kept, **BAD[how])
    got, gradient = with_gradient(
        lambda s: gkd.sparse_loss(s, on("cuda", bad), target.cuda(), reduction="none"),
        student.cuda(),
    )
    assert got[3].isnan() and gradient[3].isnan().all()
    assert same_bits(got[:3], wanted[:3]) and same_bits(gradient[:3], slope[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, dtype):
    """As the CPU has it, which test_sparse_values.py judges."""
    student, teacher = pair(kind, (5, 33), dtype)
    target = targets((5, 33)) % 2
    target[-1] = -100
    margin = torch.linspace(0.0, 0.3, 5)
    settings = {"scale": 64.0, "distillation_weight": 0.7, "reduction": "none"}
    bound = 1e-12 if dtype == torch.float64 else 4e-6  # both may be off
    for how in GROUPINGS.values():
        kept = gkd.teacher_group(teacher, target, **how)
        results = []
        for device in ("cuda", "cpu"):
            there = on(device, kept, target, margin)
            results.append(
                with_gradient(
                    lambda s, x=there: gkd.training_sparse_loss(
                        s, x[0], x[1], margin=x[2], **settings
                    ),
                    (student / 64).to(device),
                )
            )
        (got, gradient), (wanted, slope) = results
        for a, b in zip(got, wanted, strict=True):
            assert error(a, b) <= bound
        assert error(gradient, slope) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_any_strides(dtype):
    student, kept, target = on("cuda", *case((3, 2055), dtype))
    (wanted, *_), slope = with_gradient(
        lambda s: gkd.training_sparse_loss(s, kept, target), student
    )
    strided = gkd.TeacherGroup(*(torch.stack([x, x], -1)[..., 0] for x in kept))
    spread = torch.empty(3, 4110, dtype=dtype, device="cuda")[:, ::2].copy_(student)
    bound = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3}[dtype]
    for x in (student, spread, student.t().contiguous().t()):
        leaf = x.detach().requires_grad_()
        value = gkd.training_sparse_loss(leaf, strided, target).total
        weight = torch.tensor(0.5, dtype=value.dtype, device="cuda")
        (gradient,) = torch.autograd.grad(value, leaf, weight)
        assert error(value.detach().cpu(), wanted.detach()) <= 2e-6
        assert error(gradient.cpu(), slope) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_graph_replays_with_other_groups(dtype):
    """The capture knows how many indices there are, and not whose they are."""
    student, kept, target = on("cuda", *case(dtype=dtype))
    weight = torch.ones((), dtype=dtype, device="cuda")
    margin = torch.full((4,), 0.4, dtype=dtype, device="cuda")

    def work():
        given = (target, True, True, None, margin, weight)
        return OPS._sparse_forward(student, *kept, *given, scale=2.0, cross_entropy_weight=1.0)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for value in (0.25, 0.0, 3.0):
        fresh = case(dtype=dtype)
        while fresh[1].indices.shape != kept.indices.shape:
            fresh = case(dtype=dtype)
        for static, new in zip((student, *kept, target), (fresh[0], *fresh[1], fresh[2]), strict=1):
            static.copy_(new)
        weight.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [x.clone() for x in captured]
        assert replayed[0].isfinite()
        assert all(same_bits(a, b) for a, b in zip(replayed, work(), strict=True))


def test_nothing_waits_for_the_device():
    student, kept, target = on("cuda", *case())
    margin = torch.full((4,), 0.4, device="cuda")

    def step():
        leaf = student.detach().requires_grad_()
        parts = gkd.training_sparse_loss(leaf, kept, target, margin=margin)
        (parts.total + gkd.sparse_loss(leaf, kept, target)).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
