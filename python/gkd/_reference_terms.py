"""The primary group and the terms of gkd.reference.loss, of [B, C] logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._settings import DEFAULT_THRESHOLD

INF = float("inf")


def primary_group(
    rank: Tensor, threshold: float | None, group_size: int | None, temperature: float
) -> Tensor:
    """bool [B, C]: the classes whose ranking logit reaches the row's cut."""
    if threshold is not None and group_size is not None:  # the shorter of the two groups
        return primary_group(rank, threshold, None, temperature) & primary_group(
            rank, None, group_size, temperature
        )
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
    classes = rank.shape[1]
    if group_size == 0:
        return torch.zeros_like(rank, dtype=torch.bool)
    if group_size is None and threshold == 1.0:
        return rank > -INF
    ordered = rank.sort(dim=1, descending=True).values
    if group_size is not None:
        return rank >= ordered[:, min(group_size, classes) - 1 : min(group_size, classes)]
    # A float32 running sum over many classes would move the cut; MPS has nothing wider.
    precise = ordered if ordered.device.type == "mps" else ordered.double()
    mass = ((precise - precise[:, :1]) / temperature).softmax(1).cumsum(1)
    last = (mass < threshold).sum(1, keepdim=True).clamp(max=classes - 1)
    return rank >= ordered.gather(1, last)


class Side(NamedTuple):
    """One network's logits seen from one group: sum over the group of exp((x - top)/T) = e^log_sum.

    Differences are taken against ``top`` before the division, so logits of any size are safe.
    """

    top: Tensor  # [B, 1], a constant; 0 for an empty group
    offsets: Tensor  # [B, C], (x - top)/T inside the group, 0 outside
    log_sum: Tensor  # [B, 1], -inf where the group has no mass


def side_of(logits: Tensor, members: Tensor, temperature: float | Tensor) -> Side:
    top = torch.where(members, logits, -INF).amax(1, keepdim=True).detach()
    top = torch.where(top > -INF, top, 0.0)
    # Replaced before exp, not after: a masked infinity would still make the gradient NaN.
    offsets = (torch.where(members, logits, top) - top) / temperature
    total = torch.where(members, offsets.exp(), 0.0).sum(1, keepdim=True)
    some = total > 0
    log_sum = torch.where(some, torch.where(some, total, 1.0).log(), -INF)
    return Side(top, offsets, log_sum)


def divergence(student: Side, teacher: Side, members: Tensor) -> Tensor:
    """KL(p/P || q/Q) inside a group, [B]; 0 where the teacher has no mass there."""
    log_q_sum = torch.where(student.log_sum > -INF, student.log_sum, 0.0)
    has_mass = members & (teacher.log_sum > -INF)
    log_p = torch.where(has_mass, teacher.offsets - teacher.log_sum, -INF)
    p = log_p.exp()
    has_mass = p > 0
    terms = p * (torch.where(has_mass, log_p, 0.0) - (student.offsets - log_q_sum))
    return torch.where(has_mass, terms, 0.0).sum(1)


def binary_divergence(
    student: tuple[Side, Side],
    teacher: tuple[Side, Side],
    both: Tensor,
    temperature: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """KL of the two groups' masses and the teacher's mass P, each [B]."""

    def logit(side: tuple[Side, Side]) -> Tensor:
        inside, outside = side
        gap = (inside.top - outside.top) / temperature + (inside.log_sum - outside.log_sum)
        return gap.squeeze(1)

    log_sigmoid = torch.nn.functional.logsigmoid
    known = both & ~logit(teacher).isnan() & ~logit(student).isnan()
    u = torch.where(known, logit(teacher), 0.0)
    v = torch.where(known, logit(student), 0.0)
    total = torch.zeros_like(u)
    for sign in (1.0, -1.0):
        log_p = log_sigmoid(sign * u)
        term = log_p.exp() * (torch.where(log_p > -INF, log_p, 0.0) - log_sigmoid(sign * v))
        total = total + torch.where(log_p > -INF, term, 0.0)
    return torch.where(known, total, 0.0), u.sigmoid()
