"""gkd.linear_loss and gkd.training_linear_loss: two heads and the loss between them, without logits
or a gradient of [B, C]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._chunks import RowsLoss, reduce, run, with_gradients, without_autocast
from ._linear_check import Call, Factors, check_call, logits_dtype
from ._plan import Plan, default_rows
from ._settings import LossSettings, takes_settings_of
from ._shard_part import Shard
from ._training import LinearTrainingSettings, TrainingLoss, split_settings, training_of
from .functional import loss
from .training import check_target_is_given, training_loss


def run_linear(
    tensors: Sequence[Tensor],
    target: Tensor | None,
    call: Call,
    shard: Shard | None = None,
    factors: Factors = (None, None),
) -> tuple[Tensor, ...]:
    """A checked call: the loss, and with training_loss its parts.

    tensors: student features and weight, and those of the teacher, or its `gkd.TeacherGroup`.
    """
    leading = tensors[0].shape[:-1]
    if len(leading) > 1:
        rows = list(tensors)
        for features in (0,) if call.is_sparse else (0, 2):
            rows[features] = rows[features].flatten(0, -2)
        flat, margins = (None if x is None else x.flatten() for x in (target, factors[0]))
        values = run_linear(rows, flat, call, shard, (margins, factors[1]))
        if call.settings["reduction"] != "none":
            return values
        return tuple(value.reshape(leading) for value in values)
    of_teacher = tensors[4].dtype if call.is_sparse else logits_dtype(tensors[2])
    dtypes = (logits_dtype(tensors[0]), of_teacher)
    chunk_rows = call.chunk_rows
    if chunk_rows is None:
        # Of sizes that every rank knows: the ranks' collectives go by the chunk.
        classes = tensors[1].shape[0]
        if shard is not None:
            classes = math.ceil(shard.num_classes / dist.get_world_size(shard.group))
        # Logits and gradient, and the teacher's logits where it has a head.
        bytes_of_class = 2 * dtypes[0].itemsize + (0 if call.is_sparse else dtypes[1].itemsize)
        on_cpu = tensors[0].device.type == "cpu"
        chunk_rows = default_rows(leading[0], classes * bytes_of_class, on_cpu)
    plan = Plan(call, dtypes, chunk_rows, shard)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        with without_autocast(tensors[0]):
            found = run(plan, tensors, target, (False, False), factors=factors)
            return tuple(reduce(plan, target, rows) for rows in found.rows)
    if call.settings["reduction"] == "none":
        made = RowsLoss.apply(plan, target, *factors, *tensors)  # type: ignore[no-untyped-call]
        return (made,) if isinstance(made, Tensor) else made
    return with_gradients(plan, target, tensors, factors)


@takes_settings_of(loss)
def linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    method: Literal["auto", "sort", "select"] = "auto",
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`gkd.loss` of two heads' logits, of which no [B, C] tensor is ever made.

    The same, but for memory, as ``gkd.loss(head(student_features, student_weight),
    head(teacher_features, teacher_weight), target, ...)`` with ``head(f, w) = scale *
    F.linear(F.normalize(f), F.normalize(w))``, or ``scale * F.linear(f, w)`` with
    ``normalize=False``.

    Rows go through in chunks. Beside the inputs that takes three [chunk_rows, C] matrices, a few of
    [B, D], and where the student's weight needs a gradient, that gradient: [C, D] in float32
    (float64 for float64) until the backward rounds it to the weight's dtype. With "mean" and "sum"
    the forward sums the gradients; with "none" the backward makes every chunk again.

    Args:
        student_features: [..., D_s], float16, bfloat16, float32 or float64. The leading dimensions
            are rows.
        student_weight: [C, D_s], of the features' dtype.
        teacher_features: [..., D_t]; must not require grad, nor must ``teacher_weight``.
        teacher_weight: [C, D_t], of the teacher's features' dtype. One device holds all.
        target: as in `gkd.loss`.
        scale: > 0, multiplies the logits; 64 unless given, or 1 with ``normalize=False``.
        normalize: cosine logits: rows of features and weights are divided by their norms, or by
            1e-12 where those are less.
        chunk_rows: rows at a time, >= 1. More rows are faster, since every chunk reads the weights
            and reads and writes the gradient of [C, D]. Unless given: as many as keep the three
            matrices within 128 MiB (2 GiB on CUDA), but at least 32 (256).
        method: as in `gkd.loss`.
        **settings: as in `gkd.loss`.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where either network is.
        Logits have the features' dtype, as a head's would: half ones are rounded. Under autocast
        they have its dtype, while norms and the sums for the gradients are float32 and no weight is
        cast as a whole. Differentiable once, with respect to student features and weight.

    Raises:
        ValueError: a shape or a setting that does not fit, as in `gkd.loss`.
        TypeError: a dtype that is not supported.
        IndexError: a target out of bounds.
        RuntimeError: tensors on several devices.

    Examples:
        >>> features = torch.randn(8, 16, requires_grad=True)
        >>> weight = torch.randn(100, 16, requires_grad=True)
        >>> value = gkd.linear_loss(features, weight, torch.randn(8, 32), torch.randn(100, 32))
        >>> value.backward()
        >>> weight.grad.shape
        torch.Size([100, 16])
    """
    tensors = (student_features, student_weight, teacher_features, teacher_weight)
    call = Call.of("gkd.linear_loss", scale, normalize, chunk_rows, {**settings, "method": method})
    check_call(call, tensors, target)
    return run_linear(tensors, target, call)[0]


@takes_settings_of(training_loss, LinearTrainingSettings)
def training_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    target: Tensor,
    *,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    method: Literal["auto", "sort", "select"] = "auto",
    **settings: Unpack[LinearTrainingSettings],
) -> TrainingLoss:
    """`gkd.training_loss` of two heads' cosines, of which no [B, C] tensor is ever made.

    A head that trains: the same, but for memory, as ``gkd.training_loss(cosines(student),
    cosines(teacher), target, scale=scale, ...)`` with ``cosines(f, w) = F.linear(F.normalize(f),
    F.normalize(w))``, or ``F.linear(f, w)`` with ``normalize=False``. Memory is that of
    `gkd.linear_loss`.

    Args:
        student_features: as in `gkd.linear_loss`, as are the other three.
        student_weight: [C, D_s].
        teacher_features: [..., D_t].
        teacher_weight: [C, D_t].
        target: as in `gkd.training_loss`.
        scale: as in `gkd.linear_loss`: 64 unless given, or 1 with ``normalize=False``.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`.
        method: as in `gkd.loss`.
        **settings: as in `gkd.training_loss`. The margin is of the cosines, before the scale.

    Returns:
        A `gkd.TrainingLoss`, whose total is differentiable once with respect to student features
        and weight.

    Raises:
        ValueError: as in `gkd.linear_loss` and `gkd.training_loss`, as are the other errors.

    Examples:
        >>> features = torch.randn(8, 16, requires_grad=True)
        >>> weight = torch.randn(100, 16, requires_grad=True)
        >>> teacher, target = (torch.randn(8, 32), torch.randn(100, 32)), torch.arange(8)
        >>> loss = gkd.training_linear_loss(features, weight, *teacher, target, margin=0.4)
        >>> loss.total.backward()
        >>> weight.grad.shape
        torch.Size([100, 16])
    """
    name = "gkd.training_linear_loss"
    check_target_is_given(name, target)
    given, head = split_settings(settings)
    training = training_of(name, target.shape, head)
    factors = (training.margins, training.distillation_factor)
    tensors = (student_features, student_weight, teacher_features, teacher_weight)
    call = Call.of(
        name, scale, normalize, chunk_rows, {**given, "method": method}, training.settings
    )
    check_call(call, tensors, target, factors=factors)
    return TrainingLoss(*run_linear(tensors, target, call, factors=factors))
