"""gkd.linear_loss: chunks of rows through the student's head and an operator.

The gradients of student features and weight are summed as the chunks pass. What differs between the
linear losses is in `_plan`, but for the all-reduce of the features' gradient where the ranks of a
process group hold a shard of the classes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._head import accumulate_dtype, finish_gradient
from ._linear_check import Factors
from ._plan import Plan


@dataclass
class _Sums:
    """What the chunks leave behind: row losses and their parts, [B] each, and, where asked for, the
    gradients [B, D] and [C, D] of the normalised features and weight, divided by grad_scale [];
    their norms."""

    rows: list[Tensor]
    features: Tensor | None
    weight: Tensor | None
    grad_scale: Tensor
    norms: tuple[Tensor | None, Tensor | None]

    def finish(self, tensors: Sequence[Tensor], factors: tuple[Tensor, Tensor]) -> None:
        """Turns the sums into factor times the gradients of features and weight, in place."""
        totals = (self.features, self.weight)
        for total, source, norm, factor in zip(
            totals, tensors[:2], self.norms, factors, strict=True
        ):
            if total is not None:
                finish_gradient(total, source, norm, factor)


def run(
    plan: Plan,
    tensors: Sequence[Tensor],
    target: Tensor | None,
    need_grad: tuple[bool, bool],
    row_weight: Tensor | None = None,
    factors: Factors = (None, None),
) -> _Sums:
    """Every chunk once.

    tensors: student features, student weight, and the teacher's (`Plan.teacher`). need_grad: which
    of the sums. row_weight: [B], of each row in the sum for the weight.
    """
    student_features, student_weight = tensors[:2]
    if target is not None:  # a NaN in an ignored row must not meet its gradient of 0
        ignored = (target == plan.call.settings["ignore_index"]).unsqueeze(1)
        student_features = student_features.masked_fill(ignored, 0)
    student = plan.student(student_features, student_weight)
    count, classes = student_features.shape[0], student_weight.shape[0]
    device, total = student_weight.device, accumulate_dtype(plan.dtypes[0])
    loss_dtype = accumulate_dtype(torch.promote_types(*plan.dtypes))
    sums = _Sums(
        [torch.empty(count, dtype=loss_dtype, device=device) for _ in range(plan.num_parts)],
        torch.zeros(student_features.shape, dtype=total, device=device) if need_grad[0] else None,
        torch.zeros(student_weight.shape, dtype=total, device=device) if need_grad[1] else None,
        torch.ones((), dtype=total, device=device),
        student.norms,
    )
    chunk = min(plan.chunk_rows, count)
    out = torch.empty((chunk, classes), dtype=plan.dtypes[0], device=device)
    teacher = plan.teacher(tensors[2:], (chunk, classes))
    for start in range(0, count, max(1, chunk)):
        rows = slice(start, min(start + chunk, count))
        values, gradient, sums.grad_scale = plan.row_losses(
            student.logits(rows, out),
            teacher(rows),
            None if target is None else target[rows],
            rows.start,
            any(need_grad),
            (None if factors[0] is None else factors[0][rows], factors[1]),
        )
        for column, value in zip(sums.rows, values, strict=True):
            column[rows] = value
        if any(need_grad):
            to_features = None if sums.features is None else sums.features[rows]
            student.add_gradients(gradient, rows, to_features, sums.weight, row_weight)
        del gradient  # before the next chunk's is made
    if sums.features is not None and plan.shard is not None and plan.shard.reduce_features_grad:
        dist.all_reduce(sums.features, group=plan.shard.group)
    return sums


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A plan's dtypes are final. (Meta tensors have no autocast.)"""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _divisor(plan: Plan, target: Tensor | None, rows: Tensor) -> Tensor:
    """[] float64: 1 / counted rows of the whole batch for "mean", else 1."""
    one = torch.ones((), dtype=torch.float64, device=rows.device)
    if plan.call.settings["reduction"] != "mean":
        return one
    counted = (
        one * rows.shape[0]
        if target is None
        else (target != plan.call.settings["ignore_index"]).sum()
    )
    return one / counted.clamp(min=1)


class _Once(torch.autograd.Function):
    """A gradient whose own derivative is an error rather than a silent zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise NotImplementedError("gkd.linear_loss is not differentiable twice")


def reduce(plan: Plan, target: Tensor | None, rows: Tensor) -> Tensor:
    if plan.call.settings["reduction"] == "none":
        return rows
    total = rows.double().sum() * _divisor(plan, target, rows)
    # A to() that does nothing to an output makes torch.compile lose the gradients, silently.
    return total if total.dtype == rows.dtype else total.to(rows.dtype)


def with_gradients(
    plan: Plan, target: Tensor | None, tensors: Sequence[Tensor], factors: Factors
) -> tuple[Tensor, ...]:
    """The loss and its parts reduced by "mean" or "sum"; the forward makes the gradients."""
    need_grad = (tensors[0].requires_grad, tensors[1].requires_grad)
    with torch.no_grad(), without_autocast(tensors[0]):
        sums = run(plan, tensors, target, need_grad, factors=factors)
        factor = (sums.grad_scale.double() * _divisor(plan, target, tensors[0])).to(
            sums.grad_scale.dtype
        )
        sums.finish(tensors, (factor, factor * plan.call.scale))
        loss, *parts = (reduce(plan, target, rows) for rows in sums.rows)
    value: Tensor = torch.ops.gkd._with_gradients(loss, *tensors[:2], sums.features, sums.weight)
    return (value, *parts)


def _is_batched(tensor: Tensor) -> bool:
    """Whether vmap has wrapped it, torch.func's or that of is_grads_batched."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


class RowsLoss(torch.autograd.Function):
    """The loss with reduction "none".

    Each row has a grad_output of its own, which the weight's gradient needs before it is summed
    over rows: the backward runs the chunks again.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, *given: Tensor | None) -> Any:
        target, margins, factor = given[:3]
        tensors = [x for x in given[3:] if x is not None]
        ctx.plan = plan
        ctx.outside = [None] * len(given)
        if not torch.compiler.is_compiling():
            # autograd saves no tensors of inference mode, which have no version to compare.
            ctx.outside = [x if x is not None and x.is_inference() else None for x in given]
        kept = zip(given, ctx.outside, strict=True)
        ctx.save_for_backward(*(x if out is None else None for x, out in kept))
        with without_autocast(tensors[0]):
            rows = run(plan, tensors, target, (False, False), factors=(margins, factor)).rows
        if len(rows) == 1:
            return rows[0]
        ctx.mark_non_differentiable(*rows[1:])
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> Any:
        if not torch.compiler.is_compiling() and _is_batched(grad_output):
            raise NotImplementedError(
                "gkd.linear_loss has no batched gradients (is_grads_batched, vmap over the "
                "backward) with reduction none: call autograd.grad once for each grad_output"
            )
        plan: Plan = ctx.plan
        saved = zip(ctx.saved_tensors, ctx.outside, strict=True)
        target, margins, weight, *tensors = (x if out is None else out for x, out in saved)
        need_grad = ctx.needs_input_grad[4:6]
        with torch.no_grad(), without_autocast(grad_output):
            factor = grad_output.to(accumulate_dtype(plan.dtypes[0]))
            # Divided by the largest: a float16 product takes row weights of at most 1.
            most = factor.new_full((), torch.finfo(factor.dtype).tiny)
            most = torch.cat([factor.abs(), most.unsqueeze(0)]).max()
            sums = run(plan, tensors, target, need_grad, factor / most, (margins, weight))
            scale = sums.grad_scale.to(factor.dtype)
            sums.finish(tensors, ((factor * scale).unsqueeze(1), most * scale * plan.call.scale))
            gradients: list[Any] = [
                None if total is None else total.to(x.dtype)
                for total, x in zip((sums.features, sums.weight), tensors[:2], strict=True)
            ]
        if torch.is_grad_enabled():
            graph = (*tensors[:2], grad_output)
            once: Any = _Once.apply
            gradients = [None if g is None else once(g, *graph) for g in gradients]
        return None, None, None, None, *gradients, *(None for _ in tensors[2:])
