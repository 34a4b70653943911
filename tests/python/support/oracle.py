"""The loss in float64, row by row with autograd; written apart from the library.

`error` and `same_bits` are the only judges of a result; test_oracle.py judges them.
"""

import math

import torch

import gkd

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: The loss of a float32 or float64 computation, relative; the gradient's, normwise.
BOUND = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}
#: A unit in the last place relative to the number, at worst.
ULP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def gradient_bound(dtype, ulps):
    """What a gradient of `dtype` may be off by, normwise: arithmetic, and `ulps` of rounding."""
    return BOUND[dtype] + ulps * ULP.get(dtype, 0.0)


def primary_mask(
    rank, *, threshold=None, group_size=None, group_temperature=None, temperature=4.0, target=None
):
    """bool [B, C]: classes whose ranking logit reaches the cut, and the target."""
    if threshold is None and group_size is None:
        threshold = 0.93
    mask = torch.zeros_like(rank, dtype=torch.bool)
    for row in range(rank.shape[0]):
        ordered = rank[row].sort(descending=True).values
        cuts = []
        if group_size == 0:
            cuts.append(float("inf"))
        elif group_size is not None:
            cuts.append(ordered[min(group_size, len(ordered)) - 1])
        if threshold == 1:
            cuts.append(torch.finfo(rank.dtype).min)
        elif threshold is not None:
            mass = (ordered / (group_temperature or temperature)).softmax(0).cumsum(0)
            cuts.append(ordered[min(int((mass < threshold).sum()), len(ordered) - 1)])
        mask[row] = rank[row] >= max(float(cut) for cut in cuts)
    if target is not None:
        for row, chosen in enumerate(target.tolist()):
            if 0 <= chosen < rank.shape[1]:
                mask[row, chosen] = True
    return mask


def loss_rows(
    student,
    teacher,
    mask,
    *,
    temperature=4.0,
    primary_weight=8.0,
    binary_weight=1.0,
    secondary_weight=0.0,
    coupled=False,
):
    """[B] row losses for a given group."""
    log_q = (student.double() / temperature).log_softmax(1)
    log_p = (teacher.double() / temperature).log_softmax(1)
    rows = []
    for p, q, inside in zip(log_p, log_q, mask, strict=True):
        total = 0 * q.sum()
        groups = [(inside, primary_weight), (~inside, secondary_weight)]
        for members, weight in groups:
            if not members.any():
                continue
            mass_p, mass_q = p[members].logsumexp(0), q[members].logsumexp(0)
            if inside.any() and (~inside).any():
                total = total + binary_weight * mass_p.exp() * (mass_p - mass_q)
            a, b = p[members] - mass_p, q[members] - mass_q
            factor = mass_p.exp() if coupled else 1.0
            total = total + weight * factor * (a.exp() * (a - b)).sum()
        rows.append(temperature**2 * total)
    return torch.stack(rows) if rows else student.double().sum(1)


def split(settings):
    """Settings of gkd.loss as (how the group is chosen, what the terms weigh, who ranks)."""
    grouping = ("threshold", "group_size", "group_temperature", "rank_by")
    how = {k: settings[k] for k in (*grouping[:-1], "temperature") if k in settings}
    return how, {k: v for k, v in settings.items() if k not in grouping}, settings.get("rank_by")


def within_rounding(rank, mask, threshold, temperature, target):
    """Whether a row's mask is the group of a threshold 1e-6 away: a cut by float sums."""
    others = mask.clone()
    if target is not None and 0 <= target < len(rank):
        others[target] = False
    cut = rank[others].min()
    mass = (rank / temperature).softmax(0)
    closed = mass[rank >= cut].sum() >= threshold - 1e-6
    return bool(closed and mass[rank > cut].sum() < threshold + 1e-6)


def given_group(student, teacher, target, how, rank_by, wide_rank):
    """The mask of the definition, or the library's own where rounding moved the cut."""
    mask = primary_mask(wide_rank, target=None if target is None else target.cpu(), **how)
    used = gkd.group(
        student.detach(), teacher, target, **how, rank_by=rank_by, return_mask=True
    ).mask.cpu()
    for row in (used != mask).any(1).nonzero().flatten().tolist():
        by_mass = how.get("threshold") is not None or how.get("group_size") is None
        assert by_mass, f"row {row} has another group than by definition"
        chosen = None if target is None else int(target[row])
        assert within_rounding(
            wide_rank[row],
            used[row],
            how.get("threshold", 0.93),
            how.get("group_temperature") or how.get("temperature", 4.0),
            chosen,
        ), f"row {row} has another group than by definition"
        mask[row] = used[row]
    return mask


def expected_rows(student, teacher, target, settings):
    """[B] row losses and a leaf for their gradient, on the CPU in float64, given the same group."""
    how, terms, rank_by = split(settings)
    wide = student.detach().cpu().double().requires_grad_()
    wide_teacher = teacher.detach().cpu().double()
    rank = wide.detach() if rank_by == "student" else wide_teacher
    mask = given_group(student, teacher, target, how, rank_by or "teacher", rank)
    return loss_rows(wide, wide_teacher, mask, **terms), wide


def reduce(rows, reduction):
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / max(len(rows), 1)}[reduction]


def error(actual, expected):
    """Normwise: the largest difference over the largest expected entry; inf for NaN or inf in
    either. `expected` has the dtype of `actual`, or is an oracle's, in float64."""
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    assert expected.dtype in (actual.dtype, torch.float64), f"{actual.dtype}, {expected.dtype}"
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if expected.numel() == 0:
        return 0.0
    gap = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    return gap / max(scale, 1e-30) if math.isfinite(gap) else math.inf


def same_bits(a, b):
    """Equal to the bit, NaN payloads and the sign of zero included."""
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = (x.detach().cpu().contiguous().flatten().view(torch.uint8) for x in (a, b))
    return a.equal(b)


def same_sums(a, b):
    """Equal to the bit on the CPU. A CUDA device adds up contiguous logits of one dtype in vectors
    of 16 bytes, and others one by one: there, equal as two results that keep the promise."""
    if a.device.type == "cpu" or a.dtype == torch.float64 or not a.is_floating_point():
        return same_bits(a, b)
    if not a.isnan().equal(b.isnan()):
        return False
    return error(a.nan_to_num(), b.nan_to_num()) <= 2 * gradient_bound(a.dtype, 0.51)


def rows_and_gradient(student, teacher, target=None, **settings):
    """gkd.loss of each row, and the student's gradient for a grad_output of its own in each."""
    leaf = student.detach().requires_grad_()
    rows = gkd.loss(leaf, teacher, target, reduction="none", **settings)
    weight = torch.linspace(0.5, 1.5, len(rows), dtype=torch.float64)
    return rows.detach(), gradient_of(rows, leaf, weight)


def gradient_of(loss, student, weight):
    """The student's gradient for a given grad_output."""
    (gradient,) = torch.autograd.grad(loss, student, weight.to(loss))
    return gradient
