"""gkd.loss, gkd.training_loss and the groups of a teacher in plain PyTorch operations.

Use it where the operator does not reach: double backward (gradient penalties, meta-learning),
``torch.func`` transforms, forward-mode derivatives, devices other than CPU and CUDA; and as an
oracle, with float64 logits. For training use `gkd.loss`.

What it costs: a full sort of every row, about ten temporaries of [B, C] that autograd keeps until
the backward, an order of magnitude in time. The KL terms are plain differences of logarithms, which
in float32 lose their digits where student and teacher nearly agree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._reference_groups import primary_mask, teacher_group
from ._settings import LossSettings, all_settings, call_op, takes_settings_of
from ._training import Training, TrainingLoss, training_of
from .functional import check_tensors
from .functional import loss as operator_loss
from .training import check_target_is_given

__all__ = ["loss", "teacher_group", "training_loss"]

_INF = float("inf")
_NAME = "gkd.reference.loss"


#: Settings that the loss may be differentiated with respect to.
_DIFFERENTIABLE = ("temperature", "primary_weight", "binary_weight", "secondary_weight")


def _check(
    name: str,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    settings: dict[str, Any],
    training: Training | None = None,
) -> dict[str, Any]:
    """The operator's own checks, on meta tensors, which no transform wraps; plain settings."""
    check_tensors(name, student, teacher, target)
    if torch.is_grad_enabled() and teacher.requires_grad:
        raise ValueError(
            f"{name}: teacher_logits must not require grad; pass teacher_logits.detach()"
        )

    def shadow(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    values = {
        k: v.detach() if k in _DIFFERENTIABLE and isinstance(v, Tensor) else v
        for k, v in settings.items()
    }
    plain = all_settings(name, values)
    shadows = (shadow(student), shadow(teacher), None if target is None else shadow(target))
    more = {} if training is None else training.arguments()
    more = {k: shadow(v) if isinstance(v, Tensor) else v for k, v in more.items()}
    call_op(name, torch.ops.gkd._forward, *shadows, False, training is not None, **more, **plain)
    return plain


class _Side(NamedTuple):
    """One network's logits seen from one group: sum over the group of exp((x - top)/T) = e^log_sum.

    Differences are taken against ``top`` before the division, so logits of any size are safe.
    """

    top: Tensor  # [B, 1], a constant; 0 for an empty group
    offsets: Tensor  # [B, C], (x - top)/T inside the group, 0 outside
    log_sum: Tensor  # [B, 1], -inf where the group has no mass


def _side(logits: Tensor, members: Tensor, temperature: float | Tensor) -> _Side:
    top = torch.where(members, logits, -_INF).amax(1, keepdim=True).detach()
    top = torch.where(top > -_INF, top, 0.0)
    # Replaced before exp, not after: a masked infinity would still make the gradient NaN.
    offsets = (torch.where(members, logits, top) - top) / temperature
    total = torch.where(members, offsets.exp(), 0.0).sum(1, keepdim=True)
    some = total > 0
    log_sum = torch.where(some, torch.where(some, total, 1.0).log(), -_INF)
    return _Side(top, offsets, log_sum)


def _divergence(student: _Side, teacher: _Side, members: Tensor) -> Tensor:
    """KL(p/P || q/Q) inside a group, [B]; 0 where the teacher has no mass there."""
    log_q_sum = torch.where(student.log_sum > -_INF, student.log_sum, 0.0)
    has_mass = members & (teacher.log_sum > -_INF)
    log_p = torch.where(has_mass, teacher.offsets - teacher.log_sum, -_INF)
    p = log_p.exp()
    has_mass = p > 0
    terms = p * (torch.where(has_mass, log_p, 0.0) - (student.offsets - log_q_sum))
    return torch.where(has_mass, terms, 0.0).sum(1)


def _binary(
    student: tuple[_Side, _Side],
    teacher: tuple[_Side, _Side],
    both: Tensor,
    temperature: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """KL of the two groups' masses and the teacher's mass P, each [B]."""

    def logit(side: tuple[_Side, _Side]) -> Tensor:
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


@takes_settings_of(operator_loss)
def loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`gkd.loss` in plain PyTorch, differentiable any number of times.

    Arguments, result and errors are those of `gkd.loss`, but for ``method`` and ``check_target``: a
    target out of bounds gives its row NaN on every device, as `gkd.loss` does on CUDA.

    Args:
        student_logits: as in `gkd.loss`.
        teacher_logits: as in `gkd.loss`.
        target: as in `gkd.loss`.
        **settings: as in `gkd.loss`. Temperature and weights may be [] tensors that require grad:
            the loss is differentiable with respect to them too. The group is not.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where either input is.

    Examples:
        >>> student = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
        >>> teacher = torch.randn(2, 9, dtype=torch.float64)
        >>> torch.autograd.gradgradcheck(lambda s: gkd.reference.loss(s, teacher), student)
        True
    """
    plain = _check(_NAME, student_logits, teacher_logits, target, dict(settings))
    temperature, *weights = (
        value.reshape(()) if isinstance(value := settings.get(name), Tensor) else plain[name]
        for name in _DIFFERENTIABLE
    )
    leading, classes = student_logits.shape[:-1], student_logits.shape[-1]
    rows_of = (math.prod(leading), classes)
    if target is not None:
        target = target.reshape(rows_of[:1])
    student_logits, teacher_logits = (x.reshape(rows_of) for x in (student_logits, teacher_logits))
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    invalid = torch.zeros_like(student[:, 0], dtype=torch.bool)
    for logits in (student.detach(), teacher):
        invalid = invalid | ~(logits < _INF).all(1) | (logits == -_INF).all(1)
    ignored = torch.zeros_like(invalid)
    chosen = None
    if target is not None:
        ignored = target == plain["ignore_index"]
        invalid = invalid | (target < 0) | (target >= student.shape[1])
        chosen = torch.arange(student.shape[1], device=target.device) == target.unsqueeze(1)
        invalid = invalid & ~ignored
    # An invalid row is multiplied by NaN, for a gradient of NaN too; an ignored one is replaced.
    factor = torch.where(invalid, float("nan"), 1.0).to(dtype)
    student = torch.where(ignored.unsqueeze(1), 0.0, student * factor.unsqueeze(1))
    teacher = torch.where(ignored.unsqueeze(1), 0.0, teacher)

    rank = student.detach() if plain["rank_by"] == "student" else teacher
    group_temperature = plain["group_temperature"] or plain["temperature"]
    inside = primary_mask(rank, plain["threshold"], plain["group_size"], group_temperature)
    if chosen is not None:
        inside = inside | chosen
    groups = (inside, ~inside)
    students = (_side(student, groups[0], temperature), _side(student, groups[1], temperature))
    teachers = (_side(teacher, groups[0], temperature), _side(teacher, groups[1], temperature))
    both = groups[0].any(1) & groups[1].any(1)
    binary, mass = _binary(students, teachers, both, temperature)

    rows = factor - factor  # 0, or NaN in an invalid row for any weights
    primary_weight, binary_weight, secondary_weight = weights
    if plain["binary_weight"] != 0 or isinstance(binary_weight, Tensor):
        rows = rows + binary_weight * binary
    # Where one group has every class its mass is 1, and the other's term is 0 already.
    masses = (torch.where(both, mass, 1.0), torch.where(both, 1.0 - mass, 1.0))
    for g, weight in enumerate((primary_weight, secondary_weight)):
        if isinstance(weight, Tensor) or weight != 0:
            term = weight * _divergence(students[g], teachers[g], groups[g])
            rows = rows + (masses[g] * term if plain["coupled"] else term)
    rows = torch.where(ignored, 0.0, temperature**2 * rows)
    if plain["reduction"] == "none":
        return rows.reshape(leading)
    total = rows.sum()
    return total if plain["reduction"] == "sum" else total / (~ignored).sum().clamp(min=1)


@takes_settings_of(operator_loss)
def training_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    distillation_weight: float | Tensor = 1.0,
    scale: float = 1.0,
    margin: float | Tensor = 0.0,
    distill_margin: bool = False,
    **settings: Unpack[LossSettings],
) -> TrainingLoss:
    """`gkd.training_loss` in plain PyTorch, differentiable any number of times, and with respect to
    a margin and a distillation weight in tensors too.

    Args:
        student_logits: as in `gkd.training_loss`, as are all others.
        teacher_logits: [..., C].
        target: [...].
        cross_entropy_weight: a number.
        distillation_weight: a number or [].
        scale: a number.
        margin: a number, [] or [...].
        distill_margin: True or False.
        **settings: as in `gkd.reference.loss`.

    Returns:
        A `gkd.TrainingLoss`, whose parts are not detached.

    Examples:
        >>> student, teacher = torch.rand(2, 9, dtype=torch.float64), torch.rand(2, 9).double()
        >>> target = torch.tensor([3, 0])
        >>> want = gkd.reference.training_loss(student, teacher, target, scale=16.0, margin=0.2)
        >>> got = gkd.training_loss(student, teacher, target, scale=16.0, margin=0.2)
        >>> torch.allclose(got.total, want.total)
        True
    """
    name = "gkd.reference.training_loss"
    check_target_is_given(name, target)
    training = training_of(
        name,
        target.shape,
        cross_entropy_weight,
        distillation_weight,
        scale,
        margin,
        distill_margin,
    )
    plain = _check(name, student_logits, teacher_logits, target, dict(settings), training)
    given = training.settings
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    margins = training.margins
    off = torch.tensor(given["margin"], dtype=dtype) if margins is None else margins.to(dtype)
    off = off.to(target.device)
    off = torch.where(torch.isfinite(off), off, float("nan")).expand(target.shape).unsqueeze(-1)
    classes = torch.arange(student_logits.shape[-1], device=target.device)
    chosen = classes == target.unsqueeze(-1)
    ignored = target == plain["ignore_index"]

    def scaled(logits: Tensor, with_margin: bool) -> Tensor:
        wide = logits.to(dtype)
        product: Tensor = given["scale"] * (
            torch.where(chosen, wide - off, wide) if with_margin else wide
        )
        return product

    student, teacher = (
        scaled(x, given["distill_margin"]) for x in (student_logits, teacher_logits)
    )
    rowwise: Any = {**settings, "reduction": "none"}
    distillation = loss(student, teacher, target, **rowwise)
    # A row with a margin of NaN is NaN, though the terms may not have it.
    distillation = distillation + torch.where(ignored, 0.0, (off - off).squeeze(-1).detach())
    cross_entropy = torch.zeros_like(distillation)
    if given["cross_entropy_weight"] != 0:
        head = scaled(student_logits, with_margin=True)
        head = torch.where(ignored.unsqueeze(-1), 0.0, head)
        index = torch.where(ignored, 0, target).long().clamp(0, len(classes) - 1).unsqueeze(-1)
        rows = head.logsumexp(-1) - head.gather(-1, index).squeeze(-1)
        # NaN for the rows that are NaN in the distillation.
        zero = torch.where(distillation.detach().isnan(), distillation.detach(), 0.0)
        cross_entropy = torch.where(ignored, 0.0, rows + zero)
    weight = training.distillation_factor
    weight = given["distillation_weight"] if weight is None else weight.to(dtype)
    parts = (cross_entropy, distillation)
    if plain["reduction"] != "none":
        count = (~ignored).sum().clamp(min=1) if plain["reduction"] == "mean" else 1
        parts = (cross_entropy.sum() / count, distillation.sum() / count)
    total = torch.zeros_like(parts[0])
    if given["cross_entropy_weight"] != 0:
        total = total + given["cross_entropy_weight"] * parts[0]
    if isinstance(weight, Tensor) or weight != 0:
        total = total + weight * parts[1]
    return TrainingLoss(total, *parts)
