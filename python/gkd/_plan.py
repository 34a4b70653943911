"""What a linear loss is made of: the student's head, what its logits meet, and the operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._head import Head
from ._linear_check import Call, Factors
from ._settings import call_op
from ._shard_part import Shard

#: Bytes that a chunk's [rows, C] matrices may take, and the rows that it has at least, by
#: whether the device is a CPU. Every chunk reads both weights and reads and writes the weight's
#: gradient once: fewer rows mean more traffic per product.
CHUNK_BYTES = {True: 2**27, False: 2**31}
LEAST_ROWS = {True: 32, False: 256}

#: Of a run of rows: the teacher's logits, or indptr, indices, logits and rest of its groups.
Teacher = Callable[[slice], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Plan:
    """All of a call but its tensors."""

    call: Call
    dtypes: tuple[torch.dtype, torch.dtype]  #: of the student's and the teacher's logits
    chunk_rows: int
    shard: Shard | None

    @property
    def num_parts(self) -> int:
        """What is reported of each row: its loss, and with training_loss the parts of it."""
        return 1 if self.call.training is None else 3

    def student(self, features: Tensor, weight: Tensor) -> Head:
        return Head(features, weight, self.dtypes[0], self.call.scale, self.call.normalize)

    def teacher(self, tensors: Sequence[Tensor], chunk: tuple[int, int]) -> Teacher:
        """tensors: features and weight, or a `gkd.TeacherGroup`; chunk: rows and classes."""
        if self.call.is_sparse:
            indptr, indices, logits, rest = tensors
            return lambda rows: (indptr[rows.start : rows.stop + 1], indices, logits, rest[rows])
        features, weight = tensors
        head = Head(features, weight, self.dtypes[1], self.call.scale, self.call.normalize)
        out = torch.empty(chunk, dtype=self.dtypes[1], device=weight.device)
        return lambda rows: (head.logits(rows, out),)

    def row_losses(
        self,
        student: Tensor,
        teacher: tuple[Tensor, ...],
        target: Tensor | None,
        first_row: int,
        need_grad: bool,
        factors: Factors,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Of a chunk's logits: row losses and their parts, the gradient divided by grad_scale, and
        grad_scale, which is the same for all chunks."""
        name, training, where = self.call.name, self.call.training, self.shard
        settings = {**self.call.settings, **(training or {}), "reduction": "none"}
        of_call: tuple[Any, ...] = (need_grad, training is not None)
        of_shard: tuple[Any, ...] = ()
        if where is not None:
            ranks = (dist.get_world_size(where.group), where.group.group_name)
            of_shard = (where.class_start, where.num_classes, *ranks)
        elif self.call.is_sparse:
            of_call = (*of_call, first_row)  # a shard's rows raise nothing that names them
        ops = torch.ops.gkd
        op = {
            (False, False): ops._forward,
            (False, True): ops._sharded_forward,
            (True, False): ops._sparse_forward,
            (True, True): ops._sharded_sparse_forward,
        }[self.call.is_sparse, where is not None]
        given = (student, *teacher, target, *of_shard, *of_call, *factors)
        loss, gradient, grad_scale, *parts = call_op(name, op, *given, **settings)
        return (loss, *parts)[: self.num_parts], gradient, grad_scale


def default_rows(count: int, row_bytes: int, on_cpu: bool) -> int:
    """Rows of a chunk: what CHUNK_BYTES holds, at least LEAST_ROWS, in chunks of even sizes.

    row_bytes: of a row's logits and gradient.
    """
    most = max(LEAST_ROWS[on_cpu], CHUNK_BYTES[on_cpu] // max(1, row_bytes))
    return max(1, math.ceil(count / math.ceil(max(1, count) / most)))
