"""gkd.distributed.loss over gloo: 1 to 4 ranks, equal to gkd.loss of the whole rows.

The mathematics of the stages is tested in test_shard_stages.py; here it is the collectives, the
scale of the gradient at every world size, and what ranks do when one of them is wrong or gone.
"""

import datetime
import itertools
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import gkd
import ranks
from cases import MODES, logits, settings_of, targets
from oracle import BOUND, error
from ranks import slices

#: 507 and 1021 are divided by no world size; slices differ, and one may be empty.
CLASSES = (507, 1021)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
#: Beyond arithmetic: what rounding to bfloat16 may differ by between two sound results, in ulp.
APART = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2.0**-7}
COLLECTIVES = {torch.float16: 6, torch.bfloat16: 6, torch.float32: 7, torch.float64: 10}


def batch(classes, dtype, with_target):
    """The same on every rank."""
    torch.manual_seed(classes)
    student, teacher = logits((6, classes), dtype)
    target = targets((6, classes)) if with_target else None
    if with_target:
        target[2] = -100
    return student, teacher, target


def loss_of_slice(student, teacher, target, where, **settings):
    """gkd.distributed.loss, told the classes `where` of whole rows."""
    mine = slice(*where)
    return gkd.distributed.loss(
        student[:, mine],
        teacher[:, mine],
        target,
        class_start=where[0],
        num_classes=student.shape[1],
        **settings,
    )


def equals_unsharded(rank, world_size):
    """Everything that is off, as text."""
    wrong = []
    ways = ("even", "uneven", "empty"), DTYPES, MODES, ("mean", "sum", "none")
    for k, case in enumerate(itertools.product(*ways)):
        layout, dtype, mode, reduction = case
        classes = CLASSES[k % len(CLASSES)]
        settings, with_target = settings_of(mode)
        student, teacher, target = batch(classes, dtype, with_target)
        weight = torch.randn((6,) if reduction == "none" else (), dtype=torch.float64) * 3
        student.requires_grad_()
        expected = gkd.loss(student, teacher, target, reduction=reduction, **settings)
        (gradient,) = torch.autograd.grad(expected, student, weight.to(expected))
        where = start, end = slices(classes, world_size, layout)[rank]
        loss = loss_of_slice(student, teacher, target, where, reduction=reduction, **settings)
        (shard,) = torch.autograd.grad(loss, student, weight.to(loss))
        off = error(loss, expected)
        if not off <= BOUND[dtype]:
            wrong.append(f"{case}: loss off by {off}")
        scale = gradient.abs().max().double()
        gap = (shard - gradient)[:, start:end].abs().max().double() if end > start else 0.0
        if not gap <= APART[dtype] * scale:
            wrong.append(f"{case}: gradient off by {gap / scale}")
        losses = [torch.empty_like(loss) for _ in range(world_size)]
        dist.all_gather(losses, loss.detach())
        if not all(x.equal(losses[0]) for x in losses):
            wrong.append(f"{case}: ranks have different losses")
    return wrong


class Collectives(TorchDispatchMode):
    """Counts what is sent: calls, and bytes of one rank's message."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "_c10d_functional" and "wait" not in op.name():
            self.calls += 1
            self.bytes += args[0].numel() * args[0].element_size()
        return op(*args, **(kwargs or {}))


def collectives_of(rank, world_size):
    counted = {}
    for dtype in COLLECTIVES:
        for spread in (1e-3, 1.0, 100.0):  # whatever the data
            student, teacher = (x * spread for x in logits((4, 507), dtype))
            where = slices(507, world_size, "uneven")[rank]
            with Collectives() as forward:
                loss = loss_of_slice(student.requires_grad_(), teacher, None, where)
            with Collectives() as backward:
                loss.backward()
            found = (forward.calls, forward.bytes // 4, backward.calls)
            assert counted.setdefault(dtype, found) == found
    return counted


def both(rank, world_size):
    return equals_unsharded(rank, world_size), collectives_of(rank, world_size)


@pytest.fixture(scope="module", params=(1, 2, 3, 4), ids="{} ranks".format)
def world(request):
    """Every rank's (what is off, collectives); the processes start once for both."""
    return ranks.run(request.param, both)


def test_equals_the_unsharded_loss(world):
    for rank, (wrong, _) in enumerate(world):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong[:10])


def test_collectives_are_few_and_fixed(world):
    for _, counted in world:
        for dtype, (calls, bytes_per_row, in_backward) in counted.items():
            spreads = COLLECTIVES[dtype] - 4
            assert calls == COLLECTIVES[dtype]
            assert bytes_per_row == 16 + 4 * 2048 + spreads * 8 * 2050 + 8 * 13 + 8 * 2
            assert in_backward == 0


def fault_of(make):
    """The error that a call raises, as (type, text)."""
    try:
        make()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


#: Of a call, what must be the same on all ranks: one of each kind.
DIFFER = ("temperature", "reduction", "rows", "the teacher's dtype")
DIFFER += ("whether there is a target", "local_target", "the targets")


def disagreements(rank, world_size):
    student, teacher, target = batch(507, torch.float32, True)
    where = start, end = slices(507, world_size, "uneven")[rank]

    def call(rows=6, dtype=torch.float32, **changes):
        settings = {"class_start": start, "num_classes": 507, "validate": True, **changes}
        own = settings.pop("target", target)
        gkd.distributed.loss(
            student[:rows, start:end],
            teacher[:rows, start:end].to(dtype),
            None if own is None else own[:rows],
            **settings,
        )

    last = rank == world_size - 1
    bad, other = target.clone(), target.clone()
    bad[3] = 600 if last else bad[3]
    other[2:4] = target[2:4].flip(0) if last else target[2:4]
    found = {
        "temperature": fault_of(lambda: call(temperature=4.5 if last else 4.0)),
        "reduction": fault_of(lambda: call(reduction="sum" if last else "mean")),
        "rows": fault_of(lambda: call(rows=5 if last else 6)),
        "the teacher's dtype": fault_of(
            lambda: call(dtype=torch.bfloat16 if last else torch.float32)
        ),
        "whether there is a target": fault_of(lambda: call(target=None if last else target)),
        "local_target": fault_of(lambda: call(local_target=last)),
        "the targets": fault_of(lambda: call(target=other)),
        "overlap": fault_of(lambda: call(class_start=start - 1 if last else start)),
        "too few": fault_of(lambda: call(num_classes=600)),
        "bad setting": fault_of(lambda: call(temperature=-1.0 if last else 4.0)),
        "one too many": fault_of(lambda: call(threshold=0.5, group_size=7 if last else None)),
        "bad target": fault_of(lambda: call(target=bad)),
        "nothing": fault_of(call),
    }
    # Without validation a bad row is NaN on all ranks, and only that row.
    if last:
        student[1, -1] = float("nan")
    loss = loss_of_slice(student, teacher, bad, where, validate=False, reduction="none")
    found["rows that are NaN"] = loss.isnan().nonzero().flatten().tolist()
    return found


def test_ranks_that_disagree_raise_the_same_error():
    first, *others = ranks.run(3, disagreements)
    for found in others:
        assert found == first
    name = "gkd.distributed.loss: "
    assert first == {
        **{what: ("ValueError", f"{name}ranks 0 and 2 disagree on {what}") for what in DIFFER},
        "overlap": (
            "ValueError",
            name + "class_start of rank 2 must be 500, where the classes before it end, got 499",
        ),
        "too few": (
            "ValueError",
            name + "num_classes must be 507, what the ranks hold together, got 600",
        ),
        "bad setting": (
            "ValueError",
            name + "rank 2: temperature must be finite and > 0, got -1",
        ),
        "one too many": ("ValueError", name + "ranks 0 and 2 disagree on group_size"),
        "bad target": (
            "IndexError",
            name + "rank 2: target 600 is out of bounds for 507 classes (row 3)",
        ),
        "nothing": None,
        "rows that are NaN": [1, 3],
    }


def one_is_killed(rank, world_size):
    whole = batch(507, torch.float32, True)
    where = slices(507, world_size, "even")[rank]
    loss_of_slice(*whole, where)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    fault = fault_of(lambda: loss_of_slice(*whole, where))
    return fault, time.monotonic() - begin


def test_survivors_of_a_killed_rank_raise_within_the_timeout():
    limit = datetime.timedelta(seconds=8)
    results = ranks.run(3, one_is_killed, timeout=limit, lost=(1,))
    assert results[1] is None
    for fault, seconds in (results[0], results[2]):
        assert fault is not None
        assert fault[0] == "RuntimeError"
        assert fault[1].startswith("gkd.distributed.loss: the ranks lost one another: ")
        assert seconds < 2 * limit.total_seconds()
