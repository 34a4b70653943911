"""gkd.loss, gkd.training_loss, gkd.sparse_loss and the groups of a teacher in plain PyTorch.

Use it where the operator does not reach: double backward (gradient penalties, meta-learning),
``torch.func`` transforms, forward-mode derivatives, devices other than CPU and CUDA; and as an
oracle, with float64 logits. For training use `gkd.loss`.

What it costs: a full sort of every row, about ten temporaries of [B, C] that autograd keeps until
the backward, an order of magnitude in time. The KL terms are plain differences of logarithms, which
in float32 lose their digits where student and teacher nearly agree.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._reference_groups import teacher_group
from ._reference_head import lowered, with_cross_entropy
from ._reference_sparse import sparse_loss, training_sparse_loss
from ._reference_terms import INF, binary_divergence, divergence, primary_group, side_of
from ._settings import LossSettings, all_settings, takes_settings_of
from ._training import (
    Training,
    TrainingLoss,
    TrainingLossSettings,
    split_settings,
    training_of,
)
from .functional import check_on_meta, check_tensors
from .functional import loss as operator_loss
from .training import check_target_is_given
from .training import training_loss as operator_training_loss

__all__ = ["loss", "sparse_loss", "teacher_group", "training_loss", "training_sparse_loss"]

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

    values = {
        k: v.detach() if k in _DIFFERENTIABLE and isinstance(v, Tensor) else v
        for k, v in settings.items()
    }
    plain = all_settings(name, values)
    more = {} if training is None else training.arguments()
    check_on_meta(name, student, teacher, target, {**plain, **more}, training is not None)
    return plain


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
        invalid = invalid | ~(logits < INF).all(1) | (logits == -INF).all(1)
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
    inside = primary_group(rank, plain["threshold"], plain["group_size"], group_temperature)
    if chosen is not None:
        inside = inside | chosen
    groups = (inside, ~inside)
    students = (side_of(student, groups[0], temperature), side_of(student, groups[1], temperature))
    teachers = (side_of(teacher, groups[0], temperature), side_of(teacher, groups[1], temperature))
    both = groups[0].any(1) & groups[1].any(1)
    binary, mass = binary_divergence(students, teachers, both, temperature)

    rows = factor - factor  # 0, or NaN in an invalid row for any weights
    primary_weight, binary_weight, secondary_weight = weights
    if plain["binary_weight"] != 0 or isinstance(binary_weight, Tensor):
        rows = rows + binary_weight * binary
    # Where one group has every class its mass is 1, and the other's term is 0 already.
    masses = (torch.where(both, mass, 1.0), torch.where(both, 1.0 - mass, 1.0))
    for g, weight in enumerate((primary_weight, secondary_weight)):
        if isinstance(weight, Tensor) or weight != 0:
            term = weight * divergence(students[g], teachers[g], groups[g])
            rows = rows + (masses[g] * term if plain["coupled"] else term)
    rows = torch.where(ignored, 0.0, temperature**2 * rows)
    if plain["reduction"] == "none":
        return rows.reshape(leading)
    total = rows.sum()
    return total if plain["reduction"] == "sum" else total / (~ignored).sum().clamp(min=1)


@takes_settings_of(operator_training_loss, TrainingLossSettings)
def training_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    **settings: Unpack[TrainingLossSettings],
) -> TrainingLoss:
    """`gkd.training_loss` in plain PyTorch, differentiable any number of times, and with respect to
    a margin and a distillation weight in tensors too.

    Args:
        student_logits: as in `gkd.training_loss`, as are all others.
        teacher_logits: [..., C].
        target: [...].
        **settings: as in `gkd.training_loss` and `gkd.reference.loss`.

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
    of_loss, head = split_settings(settings)
    training = training_of(name, target.shape, head)
    plain = _check(name, student_logits, teacher_logits, target, of_loss, training)
    given = training.settings
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def scaled(logits: Tensor) -> Tensor:
        wide = logits.to(dtype)
        wide = lowered(wide, target, training) if given["distill_margin"] else wide
        product: Tensor = given["scale"] * wide
        return product

    rowwise: Any = {**of_loss, "reduction": "none"}
    distillation = loss(scaled(student_logits), scaled(teacher_logits), target, **rowwise)
    return with_cross_entropy(student_logits.to(dtype), target, distillation, training, plain)
