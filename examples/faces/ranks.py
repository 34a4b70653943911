"""The processes of torchrun, or one alone; and the collectives of a head that is split by class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """Over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= count()
    return values


def share_first(tensors: Iterable[Tensor]) -> None:
    """The first rank's values to all. Batch normalisation's statistics are a rank's own while it
    trains; one network is what is kept, and what all ranks go on with."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def shard(classes: int) -> tuple[int, int]:
    """First class of this rank, and the one after its last: runs as PartialFC has them."""
    size, rest = divmod(classes, count())
    start = rank() * size + min(rank(), rest)
    return start, start + size + (rank() < rest)


def gathered(rows: Tensor) -> Tensor:
    """All ranks' rows, without a gradient."""
    if count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(count())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        # A rank's classes give their part of the gradient only.
        dist.all_reduce(total)
        # DDP divides by the number of ranks, as if each had a loss of its own; here all have one.
        return total.chunk(count())[rank()] * count()


def gather(rows: Tensor) -> Tensor:
    """All ranks' rows [ranks B, D] of a network's output [B, D], differentiable."""
    if count() == 1:
        return rows
    found: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return found


def all_classes(part: Tensor, classes: int) -> Tensor:
    """[B, C] of what each rank has of it, [B, C_r]."""
    if count() == 1:
        return part
    widest = -(-classes // count())  # collectives want equal shapes
    padded = part.new_zeros(widest, len(part))
    padded[: part.shape[1]] = part.t()
    sizes = [classes // count() + (k < classes % count()) for k in range(count())]
    columns = gathered(padded).split(widest)
    return torch.cat([c[:n] for c, n in zip(columns, sizes, strict=True)]).t().contiguous()
