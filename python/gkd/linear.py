"""gkd.linear_loss: two heads and the loss between them, without logits or a gradient of [B, C]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._chunks import (
    Plan,
    RowLoss,
    RowsLoss,
    Shard,
    default_rows,
    reduce,
    run,
    with_gradients,
    without_autocast,
)
from ._linear_check import check_call, check_network, logits_dtype
from ._settings import (
    FLAG,
    INTEGER,
    NUMBER,
    LossSettings,
    plain,
    plain_settings,
    takes_settings_of,
)
from .functional import loss


def _row_loss(settings: dict[str, Any]) -> RowLoss:
    """A chunk's row losses by the operator."""

    def of(
        student: Tensor, teacher: Tensor, target: Tensor | None, need_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.gkd._forward(
            student, teacher, target, need_grad, **settings
        )
        return made

    return of


def _sharded_row_loss(settings: dict[str, Any], shard: Shard) -> RowLoss:
    """The same where every rank of a group has some of the classes."""
    classes = (shard.class_start, shard.num_classes)
    ranks = (dist.get_world_size(shard.group), shard.group.group_name)

    def of(
        student: Tensor, teacher: Tensor, target: Tensor | None, need_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.gkd._sharded_forward(
            student, teacher, target, *classes, *ranks, need_grad, **settings
        )
        return made

    return of


@dataclass(frozen=True)
class Call:
    """What a caller of the function ``name`` gives with the tensors, as plain values."""

    name: str
    scale: float
    normalize: bool
    chunk_rows: int | None
    settings: dict[str, Any]  #: of the operator

    @staticmethod
    def of(
        name: str,
        scale: float | None,
        normalize: bool,
        chunk_rows: int | None,
        settings: Mapping[str, Any],
    ) -> Call:
        normalize = plain(name, "normalize", normalize, FLAG)
        if scale is None:
            scale = 64.0 if normalize else 1.0
        scale = plain(name, "scale", scale, NUMBER)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"{name}: scale must be finite and > 0, got {scale}")
        if chunk_rows is not None:
            chunk_rows = plain(name, "chunk_rows", chunk_rows, INTEGER)
            if chunk_rows < 1:
                raise ValueError(f"{name}: chunk_rows must be >= 1, got {chunk_rows}")
        return Call(name, scale, normalize, chunk_rows, plain_settings(name, settings))

    def check(
        self, tensors: Sequence[Tensor], target: Tensor | None, classes: int | None = None
    ) -> None:
        """Raises for tensors that do not fit, or settings that no operator takes."""
        check_network(self.name, "student", *tensors[:2])
        check_network(self.name, "teacher", *tensors[2:])
        check_call(self.name, tensors, target, classes, self.settings)


def run_linear(
    tensors: Sequence[Tensor], target: Tensor | None, call: Call, shard: Shard | None = None
) -> Tensor:
    """A checked call."""
    leading = tensors[0].shape[:-1]
    if len(leading) > 1:
        rows = [x.flatten(0, -2) if k % 2 == 0 else x for k, x in enumerate(tensors)]
        value = run_linear(rows, None if target is None else target.flatten(), call, shard)
        return value.reshape(leading) if call.settings["reduction"] == "none" else value
    student_features, student_weight = tensors[:2]
    classes = student_weight.shape[0] if shard is None else shard.num_classes
    reduction = call.settings["reduction"]
    dtypes = (logits_dtype(student_features), logits_dtype(tensors[2]))
    chunk_rows = call.chunk_rows
    if chunk_rows is None:
        # Of sizes that every rank knows: the ranks' collectives go by the chunk.
        classes_per_rank = (
            classes if shard is None else math.ceil(classes / dist.get_world_size(shard.group))
        )
        on_cpu = student_features.device.type == "cpu"
        chunk_rows = default_rows(student_features.shape[0], classes_per_rank, dtypes, on_cpu)
    of_rows = {**call.settings, "reduction": "none"}
    plan = Plan(
        scale=float(call.scale),
        normalize=call.normalize,
        chunk_rows=chunk_rows,
        reduction=reduction,
        ignore_index=call.settings["ignore_index"],
        dtypes=dtypes,
        row_loss=_row_loss(of_rows) if shard is None else _sharded_row_loss(of_rows, shard),
        shard=shard,
    )
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        with without_autocast(student_features):
            return reduce(plan, target, run(plan, tensors, target, (False, False))[0].rows)
    if reduction == "none":
        per_row: Tensor = RowsLoss.apply(plan, target, *tensors)  # type: ignore[no-untyped-call]
        return per_row
    return with_gradients(plan, target, tensors)


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
    call.check(tensors, target)
    return run_linear(tensors, target, call)
