"""The three terms of a row in plain PyTorch operations, from each network seen from each group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_INF = float("inf")


class Side(NamedTuple):
    """One network's logits seen from one group: sum over the group of exp((x - top)/T) = e^log_sum.

    Differences are taken against ``top`` before the division, so logits of any size are safe.
    """

    top: Tensor  # [B, 1], a constant; 0 for an empty group
    offsets: Tensor  # [B, C], (x - top)/T inside the group, 0 outside
    log_sum: Tensor  # [B, 1], -inf where the group has no mass


def side_of(logits: Tensor, members: Tensor, temperature: float | Tensor) -> Side:
    top = torch.where(members, logits, -_INF).amax(1, keepdim=True).detach()
    top = torch.where(top > -_INF, top, 0.0)
    # Replaced before exp, not after: a masked infinity would still make the gradient NaN.
    offsets = (torch.where(members, logits, top) - top) / temperature
    total = torch.where(members, offsets.exp(), 0.0).sum(1, keepdim=True)
    some = total > 0
    log_sum = torch.where(some, torch.where(some, total, 1.0).log(), -_INF)
    return Side(top, offsets, log_sum)


def divergence(student: Side, teacher: Side, members: Tensor) -> Tensor:
    """KL(p/P || q/Q) inside a group, [B]; 0 where the teacher has no mass there."""
    log_q_sum = torch.where(student.log_sum > -_INF, student.log_sum, 0.0)
    has_mass = members & (teacher.log_sum > -_INF)
    log_p = torch.where(has_mass, teacher.offsets - teacher.log_sum, -_INF)
    p = log_p.exp()
    has_mass = p > 0
    terms = p * (torch.where(has_mass, log_p, 0.0) - (student.offsets - log_q_sum))
    return torch.where(has_mass, terms, 0.0).sum(1)


def binary_term(
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
        term = log_p.exp() * (torch.where(log_p > -_INF, log_p, 0.0) - log_sigmoid(sign * v))
        total = total + torch.where(log_p > -_INF, term, 0.0)
    return torch.where(known, total, 0.0), u.sigmoid()
