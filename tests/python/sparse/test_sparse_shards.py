"""gkd.distributed.sparse_loss and training_sparse_loss: the stages with ranks played by one
process, and the functions over gloo with 1 to 4 ranks."""

import functools
import itertools

import pytest
import torch

import gkd
import ranks
from cases import targets
from gkd._settings import DEFAULTS
from gkd._training import OFF
from made import Collectives
from oracle import BOUND, error, gradient_bound, same_bits
from ranks import slices
from sparse import GROUPINGS, KINDS, edited, pair, with_gradient
from virtual_ranks import bounds

C = 507
LAYOUTS = {"uneven": (300, 207), "empty": (0, 1, 506, 0), "many": (13,) * 39}
HEADS = {
    "plain": {},
    "coupled": {"coupled": True, "temperature": 1.0},
    "head": {"cross_entropy_weight": 0.5, "distillation_weight": 2.0, "scale": 4.0},
}
ops = torch.ops.gkd


def by_hand(student, group, target, sizes, part_of=gkd.distributed.shard_group, **settings):
    """(loss, [B, C] gradient, cross-entropy, distillation) with the reductions done here."""
    settings = {**DEFAULTS, **OFF, **settings}
    classes = student.shape[1]
    parts = [(student[:, a:b], *part_of(group, a, b), target, a, classes) for a, b in bounds(sizes)]
    gathered = torch.stack([ops._shard_sparse_moments(*part, **settings) for part in parts])
    # The teacher's other classes, as one rank that the student has nothing on.
    scaled = settings["temperature"] / settings["scale"]
    outside = group.rest.double().cpu()
    rest = torch.zeros(gathered[:1].shape, dtype=torch.float64)
    rest[0, :, [0, 1, 7]] = -torch.inf
    rest[0, :, 6] = outside * scaled
    rest[0, :, [8, 11]] = (outside > -torch.inf).double().unsqueeze(1)
    rest[0, :, 10] = -rest[0, :, 8]
    rest[0, :, 12] = outside.isnan().double()
    if settings["cross_entropy_weight"]:
        rest[0, :, [13, 15]] = -torch.inf
    moments = torch.cat([gathered, rest.to(gathered.device)])
    made = [ops._shard_sparse_gradient(*part, moments, True, **settings) for part in parts]
    kl = torch.stack([*(k for _, k in made), torch.zeros_like(made[0][1])])
    shadow = group.logits.new_empty((1, 1)).expand(student.shape)
    loss, grad_scale, *of_parts = ops._shard_loss(
        student, shadow, target, 0, classes, moments, kl, **settings
    )
    gradient = torch.cat([g for g, _ in made], dim=1)
    return loss, ops._scale(gradient, torch.ones_like(grad_scale), grad_scale), *of_parts


def check_stages(device, head, layout, dtype, kind, grouping):
    settings = HEADS[head]
    student, teacher = (x.to(device) for x in pair(kind, (5, C), dtype))
    target = targets((5, C // 2), device)
    target[3] = -100
    how = {**GROUPINGS[grouping], "temperature": settings.get("temperature", 4.0)}
    group = gkd.teacher_group(teacher, target, **how)
    student = (student / settings.get("scale", 1.0)).to(dtype)
    whole = gkd.training_sparse_loss if head == "head" else gkd.sparse_loss
    leaf = student.clone().requires_grad_()
    wanted = whole(leaf, group, target, **settings)
    total = wanted.total if head == "head" else wanted
    total.backward()
    found = by_hand(student, group, target, LAYOUTS[layout], **settings)
    assert error(found[0], total) <= 3 * BOUND[dtype], (kind, grouping)
    assert error(found[1], leaf.grad) <= 3 * gradient_bound(dtype, 0.51), (kind, grouping)
    if head == "head":
        for a, b in zip(found[2:], wanted[1:], strict=True):
            assert error(a, b) <= 3 * BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", HEADS)
def test_stages_equal_the_whole(head, layout, dtype, filled_with_nan):
    for kind, grouping in itertools.product(KINDS, GROUPINGS):
        check_stages("cpu", head, layout, dtype, kind, grouping)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_stages_of_every_device(device, head, dtype, filled_with_nan):
    for layout, kind, grouping in (
        ("uneven", "peaked", "threshold"),
        ("empty", "padded", "size"),
        ("empty", "flat", "nothing"),
        ("uneven", "tied", "everything"),
    ):
        check_stages(device, head, layout, dtype, kind, grouping)


def test_bad_rows_are_nan_and_alone(device, filled_with_nan):
    student, teacher = (x.to(device) for x in pair("flat", (8, C), torch.float32))
    first = C - 7  # the groups' classes are all the first rank's, which alone knows of the fault
    teacher[:, first:] = -50
    target = targets((8, first))
    group = gkd.teacher_group(teacher, target.to(device), group_size=6)
    start = group.indptr.tolist()
    bad = edited(
        group,
        indices={start[1]: -1, start[2]: C},
        rest={3: float("nan")},
        logits={start[4]: float("nan")},
    )
    bad.indices[start[5] + 1] = bad.indices[start[5]]  # twice
    held = group.indices[start[6] : start[7]].tolist()
    target[6] = next(j for j in range(first) if j not in held)
    target = target.to(device)

    def part_of(whole, a, b):
        return whole if a == 0 else gkd.distributed.shard_group(group, a, b)

    loss, gradient, *_ = by_hand(
        student, bad, target, (first, 7), part_of=part_of, reduction="none"
    )
    assert loss[1:7].isnan().all() and gradient[1:7].isnan().all()
    assert loss[[0, 7]].isfinite().all() and gradient[[0, 7]].isfinite().all()


@pytest.mark.cuda
def test_the_last_stage_needs_as_many_ranks_of_both():
    """On a device one number leads through both messages."""
    logits = torch.randn(2, 9, device="cuda")
    moments = torch.zeros(3, 2, 13, dtype=torch.float64, device="cuda")
    with pytest.raises(ValueError, match="kl must be of 3 ranks as moments, got 2"):
        ops._shard_loss(logits, logits, None, 0, 9, moments, moments[:2, :, :2], **DEFAULTS, **OFF)


def test_shard_group_is_its_part():
    group = gkd.teacher_group(torch.randn(4, 50), group_size=9)
    for a, b in bounds((0, 20, 1, 29)):
        part = gkd.distributed.shard_group(group, a, b)
        assert same_bits(part.rest, group.rest)
        for row in range(4):
            own = slice(group.indptr[row], group.indptr[row + 1])
            here = (group.indices[own] >= a) & (group.indices[own] < b)
            mine = slice(part.indptr[row], part.indptr[row + 1])
            assert torch.equal(part.indices[mine] + a, group.indices[own][here])
            assert torch.equal(part.logits[mine], group.logits[own][here])
    with pytest.raises(ValueError, match="0 <= class_start <= class_end, got 5 and 4"):
        gkd.distributed.shard_group(group, 5, 4)


def equals_unsharded(rank, world_size):
    """Everything that is off, as text."""
    wrong = []
    ways = ("uneven", "empty"), (torch.float64, torch.bfloat16), ("mean", "none"), (False, True)
    for layout, dtype, reduction, local in itertools.product(*ways):
        torch.manual_seed(C)
        student, teacher = pair("peaked", (6, C), dtype)
        target = targets((6, C))
        target[2] = -100
        group = gkd.teacher_group(teacher, target, group_size=40)
        start, end = slices(C, world_size, layout)[rank]
        part = gkd.distributed.shard_group(group, start, end)
        where = {"class_start": start, "num_classes": C, "local_target": local}
        mine = target
        if local:
            inside = (target >= start) & (target < end)
            mine = torch.where(inside, target - start, -1)
        for is_training in (False, True):
            own = {"reduction": reduction}
            if is_training:
                own["margin"] = torch.linspace(0.1, 0.4, 6)
                own["distillation_weight"] = torch.tensor(0.75)
            name = "training_sparse_loss" if is_training else "sparse_loss"
            whole = functools.partial(getattr(gkd, name), teacher_group=group, target=target, **own)
            shard = functools.partial(
                getattr(gkd.distributed, name), group_shard=part, target=mine, **where, **own
            )
            value, gradient = with_gradient(whole, student)
            found, own_gradient = with_gradient(shard, student[:, start:end])
            if not is_training:
                found, value = (found,), (value,)
            off = max(error(a, b) for a, b in zip(found, value, strict=True))
            gap = (own_gradient.double() - gradient[:, start:end].double()).abs()
            gap = (gap.max() / gradient.double().abs().max()).item() if gap.numel() else 0.0
            apart = {torch.float64: 1e-12, torch.bfloat16: 2.0**-7}[dtype]
            if not (off <= 3 * BOUND[dtype] and gap <= apart):
                wrong.append(f"{layout} {dtype} {reduction} {local} {name}: {off} {gap}")
    return wrong


def linear_equals_unsharded(rank, world_size):
    wrong = []
    for reduction, is_training in itertools.product(("mean", "none"), (False, True)):
        torch.manual_seed(0)
        features, weight = torch.randn(6, 16).double(), torch.randn(53, 16).double()
        target = targets((6, 53))
        target[2] = -100
        group = gkd.teacher_group(torch.randn(6, 53).double() * 4, target, group_size=7)
        own = {"reduction": reduction, "chunk_rows": 4}
        if is_training:
            own |= {"margin": torch.linspace(0.1, 0.4, 6), "distillation_weight": 0.5}
        name = "training_sparse_linear_loss" if is_training else "sparse_linear_loss"
        start, end = slices(53, world_size, "uneven")[rank]
        part = gkd.distributed.shard_group(group, start, end)
        where = {"class_start": start, "num_classes": 53}
        found = []
        for call, rows, of_teacher, more in (
            (getattr(gkd, name), slice(None), group, {}),
            (getattr(gkd.distributed, name), slice(start, end), part, where),
        ):
            leaves = [x.clone().requires_grad_() for x in (features, weight[rows])]
            value = call(*leaves, of_teacher, target, **own, **more)
            total = value.total if is_training else value
            gradients = torch.autograd.grad(total.sum(), leaves)
            found.append((*(value if is_training else (value,)), *gradients))
        *wanted, of_weight = found[0]
        pairs = zip(found[1], (*wanted, of_weight[start:end]), strict=True)
        off = [error(a, b) for a, b in pairs]
        if max(off) > 1e-11:
            wrong.append(f"{reduction} {name}: {off}")
    return wrong


def collectives(rank, world_size):
    student, teacher = pair("flat", (3, C), torch.float32)
    target = targets((3, C))
    group = gkd.teacher_group(teacher, target, group_size=5)
    start, end = slices(C, world_size, "uneven")[rank]
    part = gkd.distributed.shard_group(group, start, end)
    where = {"class_start": start, "num_classes": C, "validate": False}
    leaf = student[:, start:end].clone().requires_grad_()
    gkd.distributed.sparse_loss(leaf, part, target, **where)  # compares the ranks
    with Collectives() as of_loss:
        gkd.distributed.sparse_loss(leaf, part, target, **where).backward()
    with Collectives() as of_training:
        gkd.distributed.training_sparse_loss(leaf, part, target, **where).total.backward()
    return of_loss.count, of_training.count


def errors(rank, world_size):
    """What both ranks are told where one is wrong."""
    student, teacher = pair("flat", (3, 40), torch.float32)
    target = torch.tensor([1, 25, 30])
    group = gkd.teacher_group(teacher, target, group_size=5)
    cut = slice(20 * rank, 20 * rank + 20)
    part = gkd.distributed.shard_group(group, cut.start, cut.stop)
    other = gkd.distributed.shard_group(
        gkd.teacher_group(teacher, group_size=0), cut.start, cut.stop
    )
    where = {"class_start": cut.start, "num_classes": 40, "validate": True}
    texts = []
    for given, settings in (
        (part, {"temperature": 2.0 + rank}),
        (part, {"secondary_weight": 1.0}),
        (part._replace(rest=part.rest[rank:]), {}),
        (part._replace(indices=part.indices + 20 * rank), {}),
        (other, {}),
    ):
        try:
            gkd.distributed.sparse_loss(student[:, cut], given, target, **where, **settings)
            texts.append("accepted")
        except (ValueError, IndexError) as error_:
            texts.append(f"{type(error_).__name__}: {error_}")
    return texts


def everything(rank, world_size):
    wrong = equals_unsharded(rank, world_size) + linear_equals_unsharded(rank, world_size)
    return wrong, collectives(rank, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_equals_unsharded(world_size):
    for wrong, counts in ranks.run(world_size, everything):
        assert wrong == []
        # Moments and KL: of gkd.distributed.loss they are the last two of seven.
        assert counts == (2, 2)


def test_ranks_raise_alike():
    first, second = ranks.run(2, errors)
    assert first == second
    words = (
        "ValueError: gkd.distributed.sparse_loss: ranks 0 and 1 disagree on temperature",
        "ValueError: gkd.distributed.sparse_loss: rank 0: secondary_weight must be 0",
        "ValueError: gkd.distributed.sparse_loss: rank 1: teacher_group.rest must be",
        "IndexError: gkd.distributed.sparse_loss: rank 1: teacher_group.indices: class",
        "IndexError: gkd.distributed.sparse_loss: rank 0: target 1 is not in its row's group",
    )
    for text, start in zip(first, words, strict=True):
        assert text.startswith(start), text
