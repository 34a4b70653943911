"""linear_loss's arguments as plain values, and their checks.

Messages name the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._settings import FLAG, INTEGER, NUMBER, all_settings, call_op, is_dtensor, plain

#: margins [...] and distillation_factor [], of training_loss.
Factors = tuple[Tensor | None, Tensor | None]


def logits_dtype(features: Tensor) -> torch.dtype:
    """What F.linear would make of them: autocast's dtype, but for float64 and meta tensors."""
    device = features.device.type
    if device == "meta" or features.dtype == torch.float64:
        return features.dtype
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


def check_network(name: str, which: str, features: Tensor, weight: Tensor) -> None:
    for kind, shape, x in (("features", "[..., D]", features), ("weight", "[C, D]", weight)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: {which}_{kind} must be a Tensor, got {type(x).__name__}")
        if is_dtensor(x):
            raise TypeError(
                f"{name}: {which}_{kind} is a DTensor: call linear_loss inside the forward of the "
                f"module that holds it, pass {which}_{kind}.full_tensor(), or call "
                "gkd.distributed.linear_loss, which takes heads that are split by classes"
            )
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(
                f"{name}: {which}_{kind} must be float16, bfloat16, float32 or float64, "
                f"got {x.dtype}"
            )
        if x.layout != torch.strided:
            raise NotImplementedError(
                f"{name}: {which}_{kind} must be a dense (strided) tensor, got {x.layout}"
            )
        if x.dim() != 2 and not (kind == "features" and x.dim() > 2):
            raise ValueError(f"{name}: {which}_{kind} must be {shape}, got {x.dim()} dimensions")
    if weight.shape[1] != features.shape[-1]:
        raise ValueError(
            f"{name}: {which}_weight must be [C, {features.shape[-1]}], got {list(weight.shape)}"
        )
    if weight.dtype != features.dtype and logits_dtype(weight) != logits_dtype(features):
        raise TypeError(
            f"{name}: {which}_weight must be {features.dtype} as {which}_features, "
            f"got {weight.dtype}"
        )


@dataclass(frozen=True)
class Call:
    """What a caller of the function ``name`` gives with the tensors, as plain values."""

    name: str
    scale: float
    normalize: bool
    chunk_rows: int | None
    settings: dict[str, Any]  #: of the operator
    training: dict[str, Any] | None = None  #: of training_loss
    is_sparse: bool = False  #: the teacher is a gkd.TeacherGroup

    @staticmethod
    def of(
        name: str,
        scale: float | None,
        normalize: bool,
        chunk_rows: int | None,
        settings: Mapping[str, Any],
        training: Mapping[str, Any] | None = None,
        is_sparse: bool = False,
    ) -> Call:
        normalize = plain(name, "normalize", normalize, FLAG)
        if scale is None:
            scale = 64.0 if normalize else 1.0
        scale = float(plain(name, "scale", scale, NUMBER))
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"{name}: scale must be finite and > 0, got {scale}")
        if chunk_rows is not None:
            chunk_rows = plain(name, "chunk_rows", chunk_rows, INTEGER)
            if chunk_rows < 1:
                raise ValueError(f"{name}: chunk_rows must be >= 1, got {chunk_rows}")
        given = all_settings(name, settings)
        if training is None:
            return Call(name, scale, normalize, chunk_rows, given, None, is_sparse)
        # The operator multiplies by the scale: a margin is one of the logits before it.
        of_head = {**training, "scale": scale}
        return Call(name, 1.0, normalize, chunk_rows, given, of_head, is_sparse)


def check_teacher(name: str, student: Sequence[Tensor], features: Tensor, weight: Tensor) -> None:
    """Raises where the teacher's head does not fit the student's features and weight."""
    check_network(name, "teacher", features, weight)
    leading, classes = student[0].shape[:-1], student[1].shape[0]
    if features.shape[:-1] != leading:
        raise ValueError(
            f"{name}: teacher_features must be [{', '.join(map(str, leading))}, D] as "
            f"student_features, got {list(features.shape)}"
        )
    if weight.shape[0] != classes:
        raise ValueError(
            f"{name}: teacher_weight must have {classes} classes as "
            f"student_weight, got {weight.shape[0]}"
        )
    for which, x in (("features", features), ("weight", weight)):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"{name}: teacher_{which} must not require grad; pass teacher_{which}.detach()"
            )


def check_call(
    call: Call,
    tensors: Sequence[Tensor],
    target: Tensor | None,
    num_classes: int | None = None,
    factors: Factors = (None, None),
) -> None:
    """Raises for tensors that do not fit, or settings that no operator takes.

    tensors: student features and weight, and those of the teacher, or its `gkd.TeacherGroup`.
    num_classes: of all ranks; None: the weights have all classes.
    """
    name, settings = call.name, call.settings
    student, teacher = tensors[:2], tensors[2:]
    check_network(name, "student", *student)
    if not call.is_sparse:
        check_teacher(name, student, *teacher)
    for x in (*tensors, target, *factors):
        if x is not None and x.device != student[0].device:
            raise RuntimeError(
                f"{name}: all tensors must be on one device, got {student[0].device} and {x.device}"
            )
    group = ("teacher_group.logits", "teacher_group.rest")
    of_group = zip(group, teacher[2:], strict=False)  # nothing where it has a head
    named = (*of_group, *zip(("margin", "distillation_weight"), factors, strict=True))
    for which, x in named:
        if x is not None and torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{name}: {which} must not require grad; pass {which}.detach()")
    if num_classes is None:
        num_classes = student[1].shape[0]
    logits = torch.empty((*student[0].shape[:-1], num_classes), device="meta")

    def shadow(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.empty_like(x, device="meta")

    ops, more = torch.ops.gkd, tuple(map(shadow, factors))
    if call.is_sparse:
        given = (logits, *map(shadow, teacher), shadow(target), False, False, None, *more)
    else:
        given = (logits, logits, shadow(target), False, False, *more)
    op = ops._sparse_forward if call.is_sparse else ops._forward
    call_op(name, op, *given, **settings, **(call.training or {}))
    on_cpu = student[0].device.type == "cpu"
    if call.is_sparse and on_cpu and not torch.compiler.is_compiling():
        # The chunks see parts of it.
        ends, count = teacher[0][[0, -1]].tolist(), teacher[1].shape[0]
        if ends != [0, count]:
            raise ValueError(
                f"{name}: teacher_group.indptr must lead from 0 to {count}, the number of indices, "
                f"got {ends[0]} and {ends[1]}"
            )
    # On CUDA a row out of bounds becomes NaN, as in gkd.loss: no wait for the device.
    if target is not None and on_cpu:
        call_op(name, torch.ops.gkd._check_target, target, num_classes, settings["ignore_index"])
