"""The family of losses: each member's own definition, in float64, over shapes and groups."""

import pytest
import torch
from torch.nn.functional import kl_div

import gkd
from cases import logits, targets
from oracle import error

SHAPES = [(1, 1), (3, 2), (4, 3), (2, 5), (6, 10), (3, 17), (2, 64), (5, 100), (1, 333), (2, 1000)]
KD = {"coupled": True, "primary_weight": 1.0, "binary_weight": 1.0, "secondary_weight": 1.0}


def kd(student, teacher, temperature):
    """T^2 KL(p || q), [B]."""
    log_q = (student / temperature).log_softmax(1)
    log_p = (teacher / temperature).log_softmax(1)
    return temperature**2 * kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)


def compare(function, definition, student, teacher):
    """Losses and gradients per row agree to 1e-12."""
    leaf = student.clone().requires_grad_()
    actual = function(leaf, teacher)
    weight = torch.rand(len(student), dtype=torch.float64) + 0.5
    (slope,) = torch.autograd.grad(actual, leaf, weight.to(leaf.device))
    wide = student.cpu().clone().requires_grad_()
    expected = definition(wide, teacher.cpu())
    (truth,) = torch.autograd.grad(expected, wide, weight)
    assert error(actual, expected) <= 1e-12
    # A row of one class has a gradient of 0 by definition and of rounding by subtraction.
    assert (slope.cpu() - truth).abs().max() <= 1e-12 * max(1.0, truth.abs().max().item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coupled_unit_weights_are_kd_for_every_group(device, shape, temperature):
    student, teacher = logits(shape, torch.float64, device)
    hows = [{"group_size": k} for k in {0, 1, 2, shape[1] // 2, shape[1], shape[1] + 5}]
    hows += [{"threshold": t} for t in (1e-30, 0.5, 0.93, 1.0)]
    for how in hows:
        for rank_by in ("teacher", "student"):
            for target in (None, targets(shape, device)):

                def function(s, t, how=how, rank_by=rank_by, target=target):
                    return gkd.loss(
                        s,
                        t,
                        target,
                        temperature=temperature,
                        rank_by=rank_by,
                        reduction="none",
                        **how,
                        **KD,
                    )

                compare(function, lambda s, t: kd(s, t, temperature), student, teacher)


# Regression: mdistiller#60.
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_dkd(device, shape):
    """Zhao et al., CVPR 2022: target against the rest, and the rest among themselves."""
    student, teacher = logits(shape, torch.float64, device)
    target = targets(shape, device)
    alpha, beta, temperature = 1.0, 8.0, 4.0

    def definition(s, t):
        p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
        rows = torch.arange(len(s))
        own = target.cpu()
        p_t, q_t = p[rows, own], q[rows, own]
        rest = torch.ones_like(p, dtype=torch.bool)
        rest[rows, own] = False
        p_n, q_n = p[rest].reshape(len(s), -1), q[rest].reshape(len(s), -1)
        p_rest, q_rest = p_n.sum(1), q_n.sum(1)
        tckd = p_t * (p_t / q_t).log() + p_rest * (p_rest / q_rest).log()
        p_n, q_n = p_n / p_rest[:, None], q_n / q_rest[:, None]
        return temperature**2 * (alpha * tckd + beta * (p_n * (p_n / q_n).log()).sum(1))

    def function(s, t):
        return gkd.loss(
            s,
            t,
            target,
            group_size=0,
            primary_weight=0.0,
            binary_weight=alpha,
            secondary_weight=beta,
            reduction="none",
        )

    compare(function, definition, student, teacher)


def masked(student, teacher, inside, temperature, weights):
    """What a user writes: softmax both, sums under the mask, softmax again within each side."""
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    rows = torch.zeros(len(student), dtype=torch.float64)
    mass_p = torch.stack([(p * m).sum(1) for m in (inside, ~inside)], 1)
    mass_q = torch.stack([(q * m).sum(1) for m in (inside, ~inside)], 1)
    both = (mass_p > 0).all(1)
    ratio = mass_p / mass_q.where(both[:, None], mass_p)
    rows = rows + weights[0] * (mass_p * ratio.where(both[:, None], ratio.new_ones(1)).log()).sum(1)
    for members, weight in ((inside, weights[1]), (~inside, weights[2])):
        for row in range(len(student)):
            m = members[row]
            if m.any():
                log_p = (teacher[row][m] / temperature).log_softmax(0)
                log_q = (student[row][m] / temperature).log_softmax(0)
                term = (log_p.exp() * (log_p - log_q)).sum()
                rows = rows + weight * term * torch.eye(len(student), dtype=torch.float64)[row]
    return temperature**2 * rows


def largest(rank, n, target=None):
    """bool: the n largest of each row, by a full sort, and the target."""
    order = rank.argsort(dim=1, descending=True)[:, :n]
    mask = torch.zeros_like(rank).scatter(1, order, 1.0).bool()
    if target is not None:
        mask = mask.scatter(1, target[:, None], True)
    return mask


@pytest.mark.parametrize("rank_by", ["student", "teacher"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_authors_rule(device, shape, rank_by):
    """The n largest of student or teacher, the target forced in, weights of the paper."""
    student, teacher = logits(shape, torch.float64, device)
    target = targets(shape, device)
    n = max(1, shape[1] // 4)

    def function(s, t):
        return gkd.loss(s, t, target, group_size=n, rank_by=rank_by, reduction="none")

    def definition(s, t):
        rank = s.detach() if rank_by == "student" else t
        return masked(s, t, largest(rank, n, target.cpu()), 4.0, (1.0, 8.0, 0.0))

    compare(function, definition, student, teacher)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gdkd(device, shape):
    """Top-k of the teacher, three weights, no target."""
    student, teacher = logits(shape, torch.float64, device)
    k = min(5, shape[1])

    def function(s, t):
        return gkd.loss(
            s,
            t,
            group_size=k,
            binary_weight=1.0,
            primary_weight=1.0,
            secondary_weight=8.0,
            temperature=2.0,
            reduction="none",
        )

    def definition(s, t):
        return masked(s, t, largest(t, k), 2.0, (1.0, 1.0, 8.0))

    compare(function, definition, student, teacher)
