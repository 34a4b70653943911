"""What gkd.training_loss must give, in float64: cross-entropy written out, beside the oracle's
terms."""

import torch

from oracle import expected_rows

#: The settings that training_loss has beside those of gkd.loss.
TRAINING = (
    "cross_entropy_weight",
    "distillation_weight",
    "scale",
    "margin",
    "distill_margin",
)


def split_training(settings):
    """(settings of training_loss alone, those of gkd.loss)."""
    own = {k: v for k, v in settings.items() if k in TRAINING}
    return own, {k: v for k, v in settings.items() if k not in TRAINING}


def cross_entropy_rows(logits, target):
    """[B] log sum_j exp(s_j) - s_target, without the cancellation of a sure row."""
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(
        1, target.long().unsqueeze(1), True
    )
    own = logits.gather(1, target.long().unsqueeze(1)).squeeze(1)
    others = logits.masked_fill(chosen, -float("inf"))
    if logits.shape[1] == 1:
        return own * 0
    gap = others.logsumexp(1) - own
    return torch.where(gap > 0, gap, 0) + torch.log1p((-gap.abs()).exp())


def expected_training(student, teacher, target, settings):
    """(total, cross-entropy, distillation), [B] each, and the float64 leaf that they depend on.

    `target`: a class in every row. The groups are the library's where rounding moved the cut.
    """
    own, of_loss = split_training(settings)
    scale, margin = own.get("scale", 1.0), own.get("margin", 0.0)
    margin = torch.as_tensor(margin, dtype=torch.float64).detach().cpu().reshape(-1, 1)
    target = target.cpu()
    leaf = student.detach().cpu().double().requires_grad_()
    wide = teacher.detach().cpu().double()
    chosen = torch.zeros_like(leaf, dtype=torch.bool).scatter_(1, target.long().unsqueeze(1), True)

    def lowered(x):
        return scale * torch.where(chosen, x - margin, x)

    terms = lowered if own.get("distill_margin", False) else lambda x: scale * x
    distillation, inner = expected_rows(terms(leaf.detach()), terms(wide), target, of_loss)
    # The oracle's rows as a function of the leaf: through the logits that they are rows of.
    (slope,) = torch.autograd.grad(distillation.sum(), inner)
    distillation = distillation.detach() + (slope * (terms(leaf) - terms(leaf).detach())).sum(1)
    cross_entropy = cross_entropy_rows(lowered(leaf), target)
    weight = torch.as_tensor(own.get("distillation_weight", 1.0), dtype=torch.float64).cpu()
    total = own.get("cross_entropy_weight", 1.0) * cross_entropy + weight * distillation
    return (total, cross_entropy, distillation), leaf
