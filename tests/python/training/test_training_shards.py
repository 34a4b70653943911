"""The stages of gkd.distributed.training_loss on every device, with ranks played by one process;
and the operator itself over gloo with 1 to 4 ranks."""

import itertools

import pytest
import torch

import gkd
import ranks
from cases import settings_of, targets
from made import Collectives
from oracle import BOUND, DTYPES, error, gradient_bound
from ranks import slices
from test_training_values import HEADS, cosines, run
from virtual_ranks import sharded_with_parts

LAYOUTS = {"uneven": (300, 207), "empty": (0, 1, 506, 0)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", HEADS)
def test_stages_equal_the_whole(device, head, layout, dtype, filled_with_nan):
    for mode in ("gkd", "authors", "mass_and_size", "everything"):
        settings, own = settings_of(mode)[0], {"cross_entropy_weight": 1.0, **HEADS[head]}
        student, teacher = cosines((5, 507), own.get("scale", 1.0), dtype, device)
        target = targets((5, 507), device)
        target[3] = -100
        m = torch.linspace(0.0, 0.4, 5, device=device)
        factors = {"margins": m, "distillation_factor": torch.full((), 0.5, device=device)}
        own = {k: v for k, v in own.items() if k != "margin"}
        loss, stored, grad_scale, _, entropy, distilled = sharded_with_parts(
            student, teacher, target, LAYOUTS[layout], **settings, **own, **factors
        )
        gradient = torch.ops.gkd._scale(stored, torch.ones_like(grad_scale), grad_scale)
        leaf = student.clone().requires_grad_()
        weight = 0.5 * own.pop("distillation_weight", 1.0)
        if "distillation_weight" in HEADS[head]:
            factors["distillation_factor"].fill_(weight)
        value = gkd.training_loss(
            leaf,
            teacher,
            target,
            margin=m,
            distillation_weight=torch.full((), weight, device=device),
            **settings,
            **own,
        )
        value.total.backward()
        for a, b in zip((loss, entropy, distilled), value, strict=True):
            assert error(a, b) <= 3 * BOUND[dtype]
        # Two roundings, each of half a unit.
        assert error(gradient, leaf.grad) <= 3 * gradient_bound(dtype, 0.51)


def test_stages_keep_bad_rows_apart(device, filled_with_nan):
    student, teacher = cosines((6, 507), 64.0, torch.float32, device)
    target = targets((6, 507), device)
    student[1, 400] = float("nan")
    target[2] = 507
    target[3] = -100
    m = torch.full((6,), 0.2, device=device)
    m[4] = float("nan")
    loss, gradient, _, _, entropy, distilled = sharded_with_parts(
        student,
        teacher,
        target,
        (300, 207),
        reduction="none",
        cross_entropy_weight=1.0,
        scale=64.0,
        margins=m,
    )
    for part in (loss, entropy, distilled):
        assert part[[1, 2, 4]].isnan().all() and part[3] == 0 and part[[0, 5]].isfinite().all()
    assert gradient[[1, 2, 4]].isnan().all() and gradient[3].eq(0).all()
    assert gradient[[0, 5]].isfinite().all()


def equals_unsharded(rank, world_size):
    """Everything that is off, as text."""
    wrong = []
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    ways = ("even", "uneven", "empty"), dtypes, HEADS, ("mean", "none")
    for layout, dtype, head, reduction in itertools.product(*ways):
        torch.manual_seed(507)
        own = HEADS[head]
        student, teacher = cosines((6, 507), own.get("scale", 1.0), dtype)
        target, m = targets((6, 507)), torch.linspace(0.1, 0.4, 6)
        target[2] = -100
        weight = torch.tensor(0.75)
        more = {"reduction": reduction, "margin": m, "rank_by": "student", "group_size": 40}
        settings = {"distillation_weight": weight, **own, **more}
        value, gradient, factor = run(student, teacher, target, **settings)
        start, end = slices(507, world_size, layout)[rank]
        leaf = student[:, start:end].clone().requires_grad_()
        part = gkd.distributed.training_loss(
            leaf, teacher[:, start:end], target, class_start=start, num_classes=507, **settings
        )
        (shard,) = torch.autograd.grad(part.total, leaf, factor.to(part.total))
        apart = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2.0**-7}[dtype]
        off = [error(a, b) for a, b in zip(part, value, strict=True)]
        scale = gradient.double().abs().max().item()
        gap = (shard.double() - gradient[:, start:end].double()).abs()
        off.append(gap.max().item() / scale if gap.numel() else 0.0)
        bounds = [3 * BOUND[dtype]] * 3 + [apart]
        if any(not x <= bound for x, bound in zip(off, bounds, strict=True)):
            wrong.append(f"{layout} {dtype} {head} {reduction}: {off}")
    return wrong


def collectives(rank, world_size):
    """{(dtype, distill_margin): those of training_loss and of loss}."""
    counts = {}
    start, end = slices(507, world_size, "uneven")[rank]
    for dtype, both in itertools.product(DTYPES, (False, True)):
        torch.manual_seed(0)
        student, teacher = cosines((3, 507), 64.0, dtype)
        args = (student[:, start:end].requires_grad_(), teacher[:, start:end], targets((3, 507)))
        where = {"class_start": start, "num_classes": 507, "validate": False}
        head = {"scale": 64.0, "margin": 0.4, "distill_margin": both}
        gkd.distributed.loss(*args, **where)  # compares the ranks
        with Collectives() as of_training:
            gkd.distributed.training_loss(*args, **where, **head).total.backward()
        with Collectives() as of_loss:
            gkd.distributed.loss(*args, **where).backward()
        counts[str(dtype), both] = (of_training.count, of_loss.count)
    return counts


def linear_equals_unsharded(rank, world_size):
    wrong = []
    for reduction, both in itertools.product(("mean", "none"), (False, True)):
        torch.manual_seed(0)
        net = [torch.randn(n, d).double() for n, d in ((6, 16), (53, 16), (6, 24), (53, 24))]
        target, m = targets((6, 53)), torch.linspace(0.1, 0.4, 6)
        target[2] = -100
        settings = {
            "margin": m,
            "distill_margin": both,
            "distillation_weight": torch.tensor(0.5),
            "chunk_rows": 4,
            "reduction": reduction,
        }
        whole = [x.clone().requires_grad_() for x in net[:2]]
        value = gkd.training_linear_loss(*whole, *net[2:], target, **settings)
        wanted = torch.autograd.grad(value.total.sum(), whole)
        start, end = slices(53, world_size, "uneven")[rank]
        mine = [net[0].clone().requires_grad_(), net[1][start:end].clone().requires_grad_()]
        part = gkd.distributed.training_linear_loss(
            *mine,
            net[2],
            net[3][start:end],
            target,
            class_start=start,
            num_classes=53,
            **settings,
        )
        found = torch.autograd.grad(part.total.sum(), mine)
        pairs = [*zip(part, value, strict=True), (found[0], wanted[0])]
        pairs.append((found[1], wanted[1][start:end]))
        off = [error(a, b) for a, b in pairs]
        if max(off) > 1e-11:
            wrong.append(f"{reduction} {both}: {off}")
    return wrong


def disagreements(rank, world_size):
    """What ranks are told that do not make the same call."""
    torch.manual_seed(0)
    student, teacher = cosines((3, 40), 1.0, torch.float32)
    where = {"class_start": 20 * rank, "num_classes": 40, "validate": True}
    cut = slice(20 * rank, 20 * rank + 20)
    args = (student[:, cut], teacher[:, cut], targets((3, 40)))
    texts = []
    for settings in (
        {"scale": 16.0 + rank},
        {"margin": 0.1 if rank else torch.full((3,), 0.1)},
        {"margin": torch.zeros(3 + rank)},
        {"scale": -1.0 if rank else 1.0},
    ):
        try:
            gkd.distributed.training_loss(*args, **where, **settings)
            texts.append("accepted")
        except ValueError as error_:
            texts.append(str(error_))
    return texts


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_equal_the_whole(world_size):
    assert ranks.run(world_size, equals_unsharded) == [[]] * world_size


@pytest.mark.parametrize("world_size", [1, 3])
def test_linear_ranks_equal_the_whole(world_size):
    assert ranks.run(world_size, linear_equals_unsharded) == [[]] * world_size


def test_no_collective_more_than_the_loss():
    for counts in ranks.run(2, collectives):
        for (dtype, both), (training, loss) in counts.items():
            # A margin needs the keys of float32.
            more = both and dtype in ("torch.float16", "torch.bfloat16")
            assert training == loss + more


def test_ranks_that_disagree_raise_the_same():
    first, second = ranks.run(2, disagreements)
    assert first == second
    expected = ("scale", "margin", "margin must be", "scale must be")
    for text, words in zip(first, expected, strict=True):
        assert words in text and text.startswith("gkd.distributed.training_loss: ")
