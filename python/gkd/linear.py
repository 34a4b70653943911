"""gkd.linear_loss: two heads and the loss between them, without logits or a gradient of [B, C]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._agreement import Agreement
from ._chunks import (
    LinearLoss,
    Plan,
    RowLoss,
    Shard,
    default_rows,
    headroom,
    reduce,
    run,
    without_autocast,
)
from ._linear_check import check_call, check_network, logits_dtype
from .functional import default_threshold


def _row_loss(settings: dict[str, Any]) -> RowLoss:
    """A chunk's row losses by the operator."""

    def of(
        student: Tensor, teacher: Tensor, target: Tensor | None, need_grad: bool
    ) -> tuple[Tensor, Tensor]:
        rows, gradient, _ = torch.ops.gkd._forward(
            student, teacher, target, reduction="none", need_grad=need_grad, **settings
        )
        return rows, gradient

    return of


def _sharded_row_loss(settings: dict[str, Any], shard: Shard) -> RowLoss:
    """The same where every rank of a group has some of the classes."""
    ranks = (dist.get_world_size(shard.group), shard.group.group_name)
    classes = {"class_start": shard.class_start, "num_classes": shard.num_classes}

    def of(
        student: Tensor, teacher: Tensor, target: Tensor | None, need_grad: bool
    ) -> tuple[Tensor, Tensor]:
        rows, gradient, _ = torch.ops.gkd._sharded_forward(
            student, teacher, target, *ranks, need_grad, reduction="none", **settings, **classes
        )
        return rows, gradient

    return of


def _agree(
    shard: Shard,
    tensors: tuple[Tensor, ...],
    target: Tensor | None,
    settings: dict[str, Any],
    more: dict[str, Any],
    check: Callable[[], None],
) -> None:
    """Raises on all ranks what any of them finds wrong, in a group's first call."""
    shape = (tensors[0].shape[0], tensors[1].shape[0])
    student, teacher = (x.new_empty((1, 1)).expand(shape) for x in (tensors[0], tensors[2]))
    settings |= {"class_start": shard.class_start, "num_classes": shard.num_classes}
    name = "gkd::linear_loss"
    agreement = Agreement(name, shard.group, student, teacher, target, settings, more, check)
    agreement.check(validate=None, local_target=False)


def run_linear(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    target: Tensor | None,
    scale: float | None,
    normalize: bool,
    chunk_rows: int | None,
    reduction: str,
    settings: dict[str, Any],
    shard: Shard | None = None,
) -> Tensor:
    """Checks, plans and runs. settings: the operator's, but for the reduction."""
    student_features, student_weight = tensors[:2]
    classes = student_weight.shape[0] if shard is None else shard.num_classes
    if scale is None:
        scale = 64.0 if normalize else 1.0

    def check() -> None:
        check_network("student", *tensors[:2])
        check_network("teacher", *tensors[2:])
        check_call(tensors, target, classes, settings, reduction)
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"gkd::linear_loss: chunk_rows must be >= 1, got {chunk_rows}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"gkd::linear_loss: scale must be finite and > 0, got {scale}")

    if shard is None:
        check()
    elif not torch.compiler.is_compiling():
        more = {"scale": scale, "normalize": normalize, "chunk_rows": chunk_rows}
        _agree(shard, tensors, target, {**settings, "reduction": reduction}, more, check)
    dtypes = (logits_dtype(student_features), logits_dtype(tensors[2]))
    if chunk_rows is None:
        # Of sizes that every rank knows: the ranks' collectives go by the chunk.
        held = classes if shard is None else math.ceil(classes / dist.get_world_size(shard.group))
        on_cpu = student_features.device.type == "cpu"
        chunk_rows = default_rows(student_features.shape[0], held, dtypes, on_cpu)
    row_loss = _row_loss(settings) if shard is None else _sharded_row_loss(settings, shard)
    plan = Plan(
        scale=float(scale),
        normalize=normalize,
        chunk_rows=chunk_rows,
        reduction=reduction,
        ignore_index=settings["ignore_index"],
        dtypes=dtypes,
        headroom=headroom(dtypes[0], settings),
        row_loss=row_loss,
        shard=shard,
    )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        value: Tensor = LinearLoss.apply(plan, target, *tensors)  # type: ignore[no-untyped-call]
        return value
    with without_autocast(student_features):
        return reduce(plan, target, run(plan, tensors, target, (False, False))[0].rows)


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
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    primary_weight: float = 8.0,
    binary_weight: float = 1.0,
    secondary_weight: float = 0.0,
    coupled: bool = False,
    rank_by: str = "teacher",
    reduction: str = "mean",
    ignore_index: int = -100,
    method: str = "auto",
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
        student_features: [B, D_s], float16, bfloat16, float32 or float64.
        student_weight: [C, D_s], of the features' dtype.
        teacher_features: [B, D_t]; must not require grad, nor must ``teacher_weight``.
        teacher_weight: [C, D_t], of the teacher's features' dtype. One device holds all.
        target: as in `gkd.loss`.
        scale: > 0, multiplies the logits; 64 unless given, or 1 with ``normalize=False``.
        normalize: cosine logits: rows of features and weights are divided by their norms, or by
            1e-12 where those are less.
        chunk_rows: rows at a time, >= 1. More rows are faster, since every chunk reads the weights
            and reads and writes the gradient of [C, D]. Unless given: as many as keep the three
            matrices within 128 MiB (2 GiB on CUDA), but at least 32 (256).
        threshold: as in `gkd.loss`.
        group_size: as in `gkd.loss`.
        temperature: as in `gkd.loss`.
        primary_weight: as in `gkd.loss`.
        binary_weight: as in `gkd.loss`.
        secondary_weight: as in `gkd.loss`.
        coupled: as in `gkd.loss`.
        rank_by: as in `gkd.loss`.
        reduction: as in `gkd.loss`.
        ignore_index: as in `gkd.loss`.
        method: as in `gkd.loss`.

    Returns:
        A scalar, or [B] with reduction "none"; float32, or float64 where either network is. Logits
        have the features' dtype, as a head's would: half ones are rounded. Under autocast they have
        its dtype, while norms and the sums for the gradients are float32 and no weight is cast as a
        whole. Differentiable once, with respect to student features and weight.

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
    return run_linear(
        (student_features, student_weight, teacher_features, teacher_weight),
        target,
        scale,
        normalize,
        chunk_rows,
        reduction,
        {
            "threshold": default_threshold("linear_loss", threshold, group_size),
            "group_size": group_size,
            "temperature": temperature,
            "primary_weight": primary_weight,
            "binary_weight": binary_weight,
            "secondary_weight": secondary_weight,
            "coupled": coupled,
            "rank_by": rank_by,
            "ignore_index": ignore_index,
            "method": method,
        },
    )
