"""The autograd function behind gkd.linear_loss: chunks of rows through two heads and an operator.

The gradients of student features and weight are summed as the chunks pass. Where the ranks of a
process group hold a shard of the classes each, only the operator and one all-reduce of the
features' gradient differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._head import Head, finish_gradient, wide

#: (student logits, teacher logits, target, need_grad) of a chunk -> its row losses and the gradient
#: of each row's loss, times the headroom.
RowLoss = Callable[[Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]

#: Bytes that a chunk's three [rows, C] matrices may take, and the rows that it has at least, by
#: whether the device is a CPU. Every chunk reads both weights and reads and writes the weight's
#: gradient once: fewer rows mean more traffic per product.
CHUNK_BYTES = {True: 2**27, False: 2**31}
LEAST_ROWS = {True: 32, False: 256}


@dataclass(frozen=True)
class Shard:
    """Which classes this rank holds."""

    group: dist.ProcessGroup
    class_start: int
    num_classes: int  #: of all ranks together


@dataclass(frozen=True)
class Plan:
    """All of a call but its tensors."""

    scale: float
    normalize: bool
    chunk_rows: int
    reduction: str
    ignore_index: int
    dtypes: tuple[torch.dtype, torch.dtype]  #: of the student's and the teacher's logits
    headroom: float  #: see gradient_headroom in csrc/check.cpp
    row_loss: RowLoss
    shard: Shard | None

    def head(self, network: int, features: Tensor, weight: Tensor) -> Head:
        return Head(features, weight, self.dtypes[network], self.scale, self.normalize)


@dataclass
class _Sums:
    """What the chunks leave behind: row losses [B] and, where wanted, [B, D] and [C, D] sums."""

    rows: Tensor
    features: Tensor | None
    weight: Tensor | None


def run(
    plan: Plan,
    tensors: Sequence[Tensor],
    target: Tensor | None,
    wanted: tuple[bool, bool],
    row_weight: Tensor | None = None,
) -> tuple[_Sums, tuple[Tensor | None, Tensor | None]]:
    """Every chunk once: row losses and sums, and the norms of student features and weight.

    tensors: student features, student weight, teacher features, teacher weight. wanted: which of
    the sums. row_weight: [B], of each row in the sum for the weight.
    """
    student_features, student_weight, teacher_features, teacher_weight = tensors
    if target is not None:  # whatever an ignored row holds, its 0 gradient must not meet a NaN
        ignored = (target == plan.ignore_index).unsqueeze(1)
        student_features = student_features.masked_fill(ignored, 0)
    student = plan.head(0, student_features, student_weight)
    teacher = plan.head(1, teacher_features, teacher_weight)
    count, classes = student_features.shape[0], student_weight.shape[0]
    device, total = student_weight.device, wide(plan.dtypes[0])
    sums = _Sums(
        torch.empty(count, dtype=wide(torch.promote_types(*plan.dtypes)), device=device),
        torch.zeros(student_features.shape, dtype=total, device=device) if wanted[0] else None,
        torch.zeros(student_weight.shape, dtype=total, device=device) if wanted[1] else None,
    )
    chunk = min(plan.chunk_rows, count)
    student_out, teacher_out = (
        torch.empty((chunk, classes), dtype=dtype, device=device) for dtype in plan.dtypes
    )
    for start in range(0, count, max(1, chunk)):
        rows = slice(start, min(start + chunk, count))
        sums.rows[rows], gradient = plan.row_loss(
            student.logits(rows, student_out),
            teacher.logits(rows, teacher_out),
            None if target is None else target[rows],
            any(wanted),
        )
        if any(wanted):
            to_features = None if sums.features is None else sums.features[rows]
            student.add_gradients(gradient, rows, to_features, sums.weight, row_weight)
        del gradient  # before the next chunk's is made
    if sums.features is not None and plan.shard is not None:
        dist.all_reduce(sums.features, group=plan.shard.group)
    return sums, student.norms


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A plan's dtypes are final. (Meta tensors have no autocast.)"""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _divisor(plan: Plan, target: Tensor | None, rows: Tensor) -> Tensor:
    """[] float64: 1 / counted rows of the whole batch for "mean", else 1."""
    one = torch.ones((), dtype=torch.float64, device=rows.device)
    if plan.reduction != "mean":
        return one
    counted = one * rows.shape[0] if target is None else (target != plan.ignore_index).sum()
    return one / counted.clamp(min=1)


def _keeps_graph() -> bool:
    """Whether the running backward may come again; true where torch does not say."""
    if torch.compiler.is_compiling():  # which cannot trace the question
        return True
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


class _Once(torch.autograd.Function):
    """A gradient whose own derivative is an error rather than a silent zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise NotImplementedError("gkd::linear_loss is not differentiable twice")


def reduce(plan: Plan, target: Tensor | None, rows: Tensor) -> Tensor:
    if plan.reduction == "none":
        return rows
    total = rows.double().sum() * _divisor(plan, target, rows)
    # A to() that does nothing to an output makes torch.compile lose the gradients, silently.
    return total if total.dtype == rows.dtype else total.to(rows.dtype)


class LinearLoss(torch.autograd.Function):
    """The forward sums gradients for "mean" and "sum", which the backward finishes and scales.

    With "none" each row has a grad_output of its own, which the weight's gradient needs before the
    sum: the backward runs the chunks again.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, target: Tensor | None, *tensors: Tensor) -> Tensor:
        again = plan.reduction == "none"
        wanted = (False, False) if again else ctx.needs_input_grad[2:4]
        with without_autocast(tensors[0]):
            sums, norms = run(plan, tensors, target, wanted)
            ctx.plan = plan
            ctx.save_for_backward(
                target,
                *tensors[:2],
                *(tensors[2:] if again else (None, None)),
                *(sums.features, sums.weight),
                *((None, None) if again else norms),
            )
            return reduce(plan, target, sums.rows)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        plan: Plan = ctx.plan
        target, *tensors, features, weight, of_features, of_weight = ctx.saved_tensors
        in_place = not _keeps_graph()
        with torch.no_grad(), without_autocast(grad_output):
            factor = grad_output.to(wide(plan.dtypes[0])) / plan.headroom
            if plan.reduction == "none":
                # Divided by the largest: a float16 product takes row weights of at most 1.
                most = factor.new_full((), torch.finfo(factor.dtype).tiny)
                most = torch.cat([factor.abs(), most.unsqueeze(0)]).max()
                wanted = ctx.needs_input_grad[2:4]
                sums, (of_features, of_weight) = run(plan, tensors, target, wanted, factor / most)
                features, weight, in_place = sums.features, sums.weight, True
                factors = (factor.unsqueeze(1), most * plan.scale)
            else:
                factor = factor * _divisor(plan, target, tensors[0]).to(factor.dtype)
                factors = (factor, factor * plan.scale)
            sources = zip(
                (features, weight), tensors[:2], (of_features, of_weight), factors, strict=True
            )
            gradients = [
                None
                if total is None
                else finish_gradient(total, source, norm, scale, in_place=in_place)
                for total, source, norm, scale in sources
            ]
        if torch.is_grad_enabled():
            graph = (*tensors[:2], grad_output)
            once: Any = _Once.apply
            gradients = [None if g is None else once(g, *graph) for g in gradients]
        return None, None, *gradients, None, None


def headroom(dtype: torch.dtype, settings: dict[str, Any]) -> float:
    """The power of two in a stored float16 gradient: gradient_headroom of csrc/check.cpp."""
    largest = max(abs(settings["primary_weight"]), abs(settings["secondary_weight"]))
    bound = settings["temperature"] * (abs(settings["binary_weight"]) + largest)
    if dtype != torch.float16 or bound == 0:
        return 1.0
    return 2.0 ** math.floor(math.log2(32768.0 / bound))


def default_rows(count: int, classes: int, dtypes: Sequence[torch.dtype], cpu: bool) -> int:
    """Rows of a chunk: what CHUNK_BYTES holds, at least LEAST_ROWS, in chunks of even sizes."""
    row = classes * (2 * dtypes[0].itemsize + dtypes[1].itemsize)
    most = max(LEAST_ROWS[cpu], CHUNK_BYTES[cpu] // max(1, row))
    return max(1, math.ceil(count / math.ceil(max(1, count) / most)))
