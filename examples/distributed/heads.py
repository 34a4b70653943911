"""What changes when the classes are split over ranks: `Whole` and `Sharded` have the same methods.

Tensor parallelism over the head: every rank holds the rows of its own slice of the classes, in the
student's head and in the teacher's, and all see the same batch. The backbone is on every rank, and
its copies stay equal because they start equal and get the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel

import gkd

from ..glyphs.losses import Recipe


class Whole:
    """One process, all classes: plain PyTorch and `gkd.loss`."""

    ranks, is_first = 1, True

    def rows(self, head: Tensor) -> Tensor:
        """The rows of a head [C, E] that this process holds, of its own memory."""
        return head.clone()

    def enter(self, features: Tensor) -> Tensor:
        """The features [B, E] as the head takes them."""
        return features

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def distillation(
        self, student: Tensor, teacher: Tensor, target: Tensor, recipe: Recipe
    ) -> Tensor:
        return gkd.loss(student, teacher, target, **recipe.arguments)

    def step(self) -> Any:
        """A context for a step's losses and their backward."""
        return nullcontext()

    def largest_gap(self, tensors: list[Tensor]) -> float:
        """Between the ranks' copies of the tensors, absolute."""
        return 0.0


class _SumGradient(torch.autograd.Function):
    """Identity forward, sum over ranks backward.

    A rank's classes give their share of the features' gradient only.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class Sharded:
    """One rank of the default process group, which holds a slice of the classes."""

    def __init__(self, classes: int, device: str) -> None:
        self.classes, self.ranks = classes, dist.get_world_size()
        self.is_first = dist.get_rank() == 0
        self.mesh = init_device_mesh(torch.device(device).type, (self.ranks,))
        # The slices of Shard and of torch.chunk, which does without empty ones at the end.
        size = -(-classes // self.ranks)
        if size * (self.ranks - 1) >= classes:
            raise ValueError(f"{classes} identities in slices of {size} leave a rank without any")
        self.start = dist.get_rank() * size
        self.end = min(self.start + size, classes)

    def rows(self, head: Tensor) -> Tensor:
        return head[self.start : self.end].clone()

    def enter(self, features: Tensor) -> Tensor:
        return _SumGradient.apply(features)

    def _split(self, logits: Tensor) -> DTensor:
        """[B, C_r] of this rank as its part of [B, C]."""
        shape = (len(logits), self.classes)
        return DTensor.from_local(
            logits, self.mesh, [Shard(1)], run_check=False, shape=shape, stride=(self.classes, 1)
        )

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self._split(logits), target).to_local()  # under loss_parallel

    def distillation(
        self, student: Tensor, teacher: Tensor, target: Tensor, recipe: Recipe
    ) -> Tensor:
        return gkd.distributed.loss(
            student, teacher, target,
            class_start=self.start, num_classes=self.classes, **recipe.arguments,
        )  # fmt: skip

    @contextmanager
    def step(self) -> Iterator[None]:
        with loss_parallel():
            yield

    def largest_gap(self, tensors: list[Tensor]) -> float:
        flat = torch.cat([x.detach().flatten() for x in tensors])
        ends = torch.stack([flat, -flat])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return ends.sum(0).max().item()
