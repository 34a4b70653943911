"""The stages of the class-sharded loss, on every device, with ranks played by one process."""

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from oracle import BOUND, DTYPES, error, expected_rows, gradient_bound
from virtual_ranks import sharded

#: 507 classes: no world size divides it, and it is no multiple of a vector or a warp. Two uneven
#: slices; four, with an empty one at either end and one of a single class.
LAYOUTS = {"uneven": (300, 207), "empty": (0, 1, 506, 0)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_oracle_and_the_group_of_the_whole_row(mode, layout, dtype, device):
    settings, with_target = settings_of(mode)
    shape = (4, 507)
    student, teacher = logits(shape, dtype, device)
    target = targets(shape, device) if with_target else None
    rows, wide = expected_rows(student, teacher, target, settings)
    expected = torch.autograd.grad(rows.sum() / len(rows), wide)[0]
    loss, stored, grad_scale, cut = sharded(student, teacher, target, LAYOUTS[layout], **settings)
    assert error(loss, rows.sum() / len(rows)) <= BOUND[dtype]
    gradient = torch.ops.gkd._scale(stored, torch.ones_like(grad_scale), grad_scale)
    assert error(gradient, expected) <= gradient_bound(dtype, 0.51)
    whole = gkd.group(student, teacher, target, **settings)
    assert cut.equal(whole.cut.double())


@pytest.mark.parametrize("reduction", ("none", "sum", "mean"))
def test_bad_and_ignored_rows_stay_apart(reduction, device, filled_with_nan):
    shape = (6, 507)
    student, teacher = logits(shape, device=device)
    target = targets(shape, device)
    before, clean, _, _ = sharded(student, teacher, target, (300, 207), reduction="none")
    student[1, 400] = float("nan")
    teacher[2, 3] = float("inf")
    target[3] = 507
    target[4] = -100
    teacher[5, 300:] = -float("inf")
    loss, gradient, grad_scale, _ = sharded(
        student, teacher, target, (300, 207), reduction=reduction
    )
    assert gradient[1:4].isnan().all()
    assert gradient[4].eq(0).all()
    assert gradient[[0, 5]].isfinite().all()
    if reduction == "none":
        assert loss[1:4].isnan().all() and loss[4] == 0 and loss[5].isfinite()
        assert loss[0].equal(before[0]) and gradient[0].equal(clean[0])
    else:
        assert loss.isnan()
    assert grad_scale == 1
    counted = 5 if reduction == "mean" else 1
    assert error(gradient[0] * counted, clean[0]) <= BOUND[torch.float32]


def test_a_slice_may_have_no_probability_at_all(device):
    """Its reference must not pull the others': they are far below 0."""
    shape = (3, 507)
    student, teacher = (x - 1e4 for x in logits(shape, torch.float64, device))
    student[:, :300] = teacher[:, :300] = -float("inf")
    for sizes in ((300, 207), (207, 300)):
        if sizes[0] == 207:
            student, teacher = student.roll(207, 1), teacher.roll(207, 1)
        loss, gradient, _, _ = sharded(student, teacher, None, sizes)
        assert error(loss, gkd.loss(student, teacher)) <= 1e-13
        assert gradient.isfinite().all()


def test_no_rows(device):
    student, teacher = logits((0, 507), device=device)
    loss, gradient, _, _ = sharded(student, teacher, None, (300, 207))
    assert loss == 0 and gradient.shape == (0, 507)


def test_opcheck_of_the_stages(device):
    student, teacher = logits((3, 20), device=device)
    target = targets((3, 33), device)
    keywords = {"threshold": 0.8}
    ops = torch.ops.gkd

    def check(op, *told):
        args = (student, teacher, target, 6, 33, *told)
        torch.library.opcheck(op.default, args, keywords)
        return op(*args, **keywords)

    check(ops._check_shard)
    extremes = check(ops._shard_extremes)
    counts = check(ops._shard_counts, extremes)
    search = torch.empty(0, dtype=torch.int64, device=device)
    for _ in range(3):
        amounts = check(ops._shard_histogram, extremes, counts, search)
        search, cut = check(ops._shard_refine, extremes, amounts, search)
    moments = check(ops._shard_moments, cut).unsqueeze(0)
    for need_grad in (False, True):
        _, kl = check(ops._shard_gradient, cut, moments, need_grad)
    check(ops._shard_loss, moments, kl.unsqueeze(0))


@pytest.mark.parametrize("rank_by", ("teacher", "student"))
@pytest.mark.parametrize("other", (torch.float32, torch.bfloat16), ids=str)
def test_double_arithmetic_for_narrower_ranks(rank_by, other, device):
    """The ranking logits' own bits decide the spreads: 4 of float32 ones, 2 of bfloat16 ones."""
    dtypes = (torch.float64, other) if rank_by == "teacher" else (other, torch.float64)
    student, teacher = logits((3, 507), dtypes[0], device, dtypes[1])
    loss, _, _, cut = sharded(student, teacher, None, (300, 207), rank_by=rank_by)
    assert error(loss, gkd.loss(student, teacher, rank_by=rank_by)) <= 1e-13
    assert cut.equal(gkd.group(student, teacher, rank_by=rank_by).cut.double())
