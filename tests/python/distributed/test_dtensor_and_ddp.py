"""gkd.distributed.loss where users have it: compiled, on DTensors, beside DDP, with partial FC's
targets. Two ranks over gloo: what differs between world sizes is in test_collectives.py."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gkd
import ranks
from cases import logits, targets
from linear_reference import networks
from oracle import error
from test_collectives import batch, fault_of, loss_of_slice, slices


def compiled(rank, world_size):
    student, *rest = batch(507, torch.float32, True)
    where = slices(507, world_size, "uneven")[rank]
    results = []
    for call in (
        loss_of_slice,
        torch.compile(loss_of_slice, fullgraph=True, backend="aot_eager"),
    ):
        loss = call(student.requires_grad_(), *rest, where)
        results.append((loss, *torch.autograd.grad(loss * 3, student)))
    return all(error(a, b) <= 1e-6 for a, b in zip(*results, strict=True))


def test_compiles_without_a_break(pair):
    assert pair("compiled") == [True, True]


def on_dtensors(rank, world_size):
    student, teacher, target = batch(507, torch.float64, True)
    mesh = init_device_mesh("cpu", (world_size,))
    whole = student.clone().requires_grad_()
    expected = gkd.loss(whole, teacher, target)
    expected.backward()

    def place(x, where):
        return distribute_tensor(x.clone(), mesh, [where])

    shard = place(student, Shard(1)).requires_grad_()
    loss = gkd.distributed.loss(shard, place(teacher, Shard(1)), target)
    loss.backward()
    same = error(loss, expected) <= 1e-13
    same &= error(shard.grad.full_tensor(), whole.grad) <= 1e-13
    by_batch = place(student, Shard(0)), place(teacher, Shard(0))
    faults = [
        fault_of(lambda: gkd.distributed.loss(*by_batch, target)),
        fault_of(lambda: gkd.distributed.loss(shard, place(teacher, Replicate()), target)),
        fault_of(lambda: gkd.distributed.loss(shard, teacher, target)),
        fault_of(lambda: gkd.distributed.loss(shard, shard.detach(), target, class_start=0)),
        fault_of(lambda: gkd.loss(shard, place(teacher, Shard(1)), target)),
    ]
    return bool(same), faults


def test_dtensors_sharded_by_class_and_no_others(pair):
    for same, faults in pair("on_dtensors"):
        assert same
        by_batch, apart, one, given, unsharded = faults
        assert by_batch[0] == "ValueError" and "must be Shard(1)" in by_batch[1]
        assert apart[0] == "ValueError" and "must be placed alike" in apart[1]
        assert one[0] == "TypeError" and "must both be DTensors" in one[1]
        assert given[0] == "ValueError" and "are the DTensor's own" in given[1]
        assert unsharded[0] == "TypeError" and "call gkd.distributed.loss" in unsharded[1]


def with_local_targets(rank, world_size):
    student, teacher, target = batch(507, torch.float64, True)
    where = start, end = slices(507, world_size, "even")[rank]
    mine = (target >= start) & (target < end)
    assert mine.any()  # on the second rank too, whose classes start elsewhere
    local = torch.where(mine, target - start, -1)

    how = {"local_target": True, "reduction": "none"}
    expected = gkd.loss(student, teacher, target, reduction="none")  # row 2 is ignored
    same = error(loss_of_slice(student, teacher, local, where, **how), expected) <= 1e-13
    if rank == 1:
        local[3] = 507  # no class of the slice
    bad = loss_of_slice(student, teacher, local, where, **how).isnan().nonzero().flatten().tolist()
    return bool(same), bad


def test_partial_fc_targets(pair):
    assert pair("with_local_targets") == [(True, [3]), (True, [3])]


def beside_ddp(rank, world_size):
    """Own rows on every rank, a DDP backbone, features gathered, a head split by class."""
    torch.manual_seed(0)
    backbone = torch.nn.Linear(5, 8).double()
    head = torch.randn(507, 8, dtype=torch.float64)
    rows = torch.randn(2 * world_size, 5, dtype=torch.float64)
    teacher, _ = logits((2 * world_size, 507), torch.float64)
    target = targets((2 * world_size, 507))
    gkd.loss(backbone(rows) @ head.T, teacher, target).backward()
    expected = [p.grad.clone() for p in backbone.parameters()]
    backbone.zero_grad()
    wrapped = torch.nn.parallel.DistributedDataParallel(backbone)
    features = torch.cat(all_gather(wrapped(rows[2 * rank : 2 * rank + 2])))
    start, end = slices(507, world_size, "uneven")[rank]
    gkd.distributed.loss(
        features @ head[start:end].T, teacher[:, start:end], target, class_start=start,
        num_classes=507,
    ).backward()  # fmt: skip
    # DDP averages over ranks what the gathering has summed over them.
    return all(
        error(p.grad * world_size, e) <= 1e-12
        for p, e in zip(backbone.parameters(), expected, strict=True)
    )


def test_beside_ddp(pair):
    assert pair("beside_ddp") == [True, True]


def heads():
    """Student features and weight, teacher features and weight, the same on every rank."""
    torch.manual_seed(0)
    return [x.detach() for x in networks("cpu", rows=6, classes=507)]


def linear(rank, world_size):
    """gkd.distributed.linear_loss against gkd.linear_loss, with a slice that has no class."""
    wrong = []
    features, weight, teacher, teacher_weight = heads()
    target = targets((6, 507))
    target[2] = -100
    for reduction in ("mean", "sum", "none"):
        for layout in ("uneven", "empty"):
            start, end = slices(507, world_size, layout)[rank]
            grad_output = torch.randn((6,) if reduction == "none" else ()).double()

            def leaves(a, b):
                return features.clone().requires_grad_(), weight[a:b].clone().requires_grad_()

            settings = {"reduction": reduction, "chunk_rows": 4, "scale": 16.0}
            whole = leaves(0, 507)
            loss = gkd.linear_loss(*whole, teacher, teacher_weight, target, **settings)
            expected = torch.autograd.grad(loss, whole, grad_output)
            mine = leaves(start, end)
            shard = gkd.distributed.linear_loss(
                *mine, teacher, teacher_weight[start:end], target, class_start=start,
                num_classes=507, **settings,
            )  # fmt: skip
            got = torch.autograd.grad(shard, mine, grad_output)
            off = [error(shard, loss), error(got[0], expected[0])]
            off.append(error(got[1], expected[1][start:end]))
            if not max(off) <= 1e-12:
                wrong.append((reduction, layout, off))
    return wrong


def dtensor_heads(rank, world_size):
    """Heads as FSDP2 and tensor parallelism keep them, split by class."""
    features, weight, teacher, teacher_weight = heads()
    mesh = init_device_mesh("cpu", (world_size,))
    whole = weight.clone().requires_grad_()
    expected = gkd.linear_loss(features, whole, teacher, teacher_weight)
    (3 * expected).backward()
    own, other = (distribute_tensor(w, mesh, [Shard(0)]) for w in (weight, teacher_weight))
    own.requires_grad_()
    loss = gkd.distributed.linear_loss(features, own, teacher, other)
    (3 * loss).backward()
    right = error(loss, expected) <= 1e-12
    right &= error(own.grad.full_tensor(), whole.grad) <= 1e-12
    replicated = distribute_tensor(features, mesh, [Replicate()])
    right &= error(
        gkd.distributed.linear_loss(replicated, own, teacher, other), expected
    ) <= 1e-12  # fmt: skip
    by_rows = distribute_tensor(features, mesh, [Shard(0)])
    by_feature = distribute_tensor(teacher_weight, mesh, [Shard(1)])
    faults = [
        fault_of(lambda: gkd.linear_loss(features, own, teacher, teacher_weight)),
        fault_of(lambda: gkd.distributed.linear_loss(by_rows, own, teacher, other)),
        fault_of(lambda: gkd.distributed.linear_loss(features, own, teacher, by_feature)),
        fault_of(lambda: gkd.distributed.linear_loss(features, weight, teacher, teacher_weight)),
    ]
    return bool(right), faults


def test_heads_that_are_dtensors(pair):
    for right, (alone, by_rows, other, plain) in pair("dtensor_heads"):
        assert right
        assert alone[0] == "TypeError" and "student_weight is a DTensor" in alone[1]
        assert by_rows[0] == "ValueError" and "student_features must be the same" in by_rows[1]
        assert other[0] == "ValueError" and "must be placed alike" in other[1]
        assert plain[0] == "ValueError" and "class_start and num_classes are needed" in plain[1]


def gathered_features(rank, world_size):
    """Own rows on every rank, gathered by an all-gather whose backward sums, as in partial FC."""
    features, weight, teacher, teacher_weight = heads()
    leaf = features.clone().requires_grad_()
    whole = gkd.linear_loss(leaf, weight, teacher, teacher_weight)
    (expected,) = torch.autograd.grad(3 * whole, leaf)
    start, end = slices(507, world_size, "uneven")[rank]
    own = slice(3 * rank, 3 * rank + 3)
    off = {}
    for summed in (True, False):
        mine = features[own].clone().requires_grad_()
        loss = gkd.distributed.linear_loss(
            torch.cat(all_gather(mine)), weight[start:end], teacher, teacher_weight[start:end],
            class_start=start, num_classes=507, reduce_features_grad=summed,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(3 * loss, mine)
        off[summed] = error(gradient, expected[own] * (world_size if summed else 1))
    return max(off.values()) <= 1e-12


def test_features_from_an_autograd_all_gather(pair):
    assert pair("gathered_features") == [True, True]


def mixed_dtypes(rank, world_size):
    """Double arithmetic over float32 ranks takes a spread more than float32 arithmetic."""
    student, teacher, target = batch(507, torch.float64, True)
    args = student, teacher.float(), target
    where = slices(507, world_size, "uneven")[rank]
    return error(loss_of_slice(*args, where), gkd.loss(*args)) <= 1e-13


def test_student_and_teacher_of_different_dtypes(pair):
    assert pair("mixed_dtypes") == [True, True]


def test_heads_split_by_class(pair):
    assert pair("linear") == [[], []]


def everything(rank, world_size):
    works = (
        compiled, on_dtensors, with_local_targets, beside_ddp, linear, dtensor_heads,
        gathered_features, mixed_dtypes,
    )  # fmt: skip
    return {work.__name__: work(rank, world_size) for work in works}


@pytest.fixture(scope="module")
def pair():
    """What two ranks made of one work, by name; the processes start once for all."""
    results = ranks.run(2, everything)
    return lambda name: [one[name] for one in results]
