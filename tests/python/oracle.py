"""The loss of SPEC, row by row, in float64 with autograd; written apart from the library."""

import torch


def primary_mask(rank, threshold, group_size, temperature, target=None):
    """bool [B, C]: classes whose ranking logit reaches the cut, and the target."""
    mask = torch.zeros_like(rank, dtype=torch.bool)
    for row in range(rank.shape[0]):
        ordered = rank[row].sort(descending=True).values
        if group_size is None:
            mass = (ordered / temperature).softmax(0).cumsum(0)
            cut = ordered[min(int((mass < threshold).sum()), len(ordered) - 1)]
        elif group_size == 0:
            cut = float("inf")
        else:
            cut = ordered[min(group_size, len(ordered)) - 1]
        mask[row] = rank[row] >= cut
    if target is not None:
        mask[torch.arange(len(mask)), target] = True
    return mask


def loss_rows(student, teacher, mask, *, temperature=4.0, primary_weight=8.0, binary_weight=1.0,
              secondary_weight=0.0, coupled=False):
    """[B] row losses for a given group."""
    log_q = (student.double() / temperature).log_softmax(1)
    log_p = (teacher.double() / temperature).log_softmax(1)
    rows = []
    for p, q, inside in zip(log_p, log_q, mask):
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
    return torch.stack(rows)
