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

    @staticmethod
    def of(
        name: str,
        scale: float | None,
        normalize: bool,
        chunk_rows: int | None,
        settings: Mapping[str, Any],
        training: Mapping[str, Any] | None = None,
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
            return Call(name, scale, normalize, chunk_rows, given)
        # The operator multiplies by the scale: a margin is one of the logits before it.
        return Call(name, 1.0, normalize, chunk_rows, given, {**training, "scale": scale})


def check_call(
    call: Call,
    tensors: Sequence[Tensor],
    target: Tensor | None,
    num_classes: int | None = None,
    factors: Factors = (None, None),
) -> None:
    """Raises for tensors that do not fit, or settings that no operator takes.

    num_classes: of all ranks; None: the weights have all classes.
    """
    name, settings = call.name, call.settings
    check_network(name, "student", *tensors[:2])
    check_network(name, "teacher", *tensors[2:])
    student_features, student_weight, teacher_features, teacher_weight = tensors
    leading = student_features.shape[:-1]
    if teacher_features.shape[:-1] != leading:
        raise ValueError(
            f"{name}: teacher_features must be [{', '.join(map(str, leading))}, D] as "
            f"student_features, got {list(teacher_features.shape)}"
        )
    if teacher_weight.shape[0] != student_weight.shape[0]:
        raise ValueError(
            f"{name}: teacher_weight must have {student_weight.shape[0]} classes as "
            f"student_weight, got {teacher_weight.shape[0]}"
        )
    for x in (*tensors, target, *factors):
        if x is not None and x.device != student_features.device:
            raise RuntimeError(
                f"{name}: all tensors must be on one device, got {student_features.device} "
                f"and {x.device}"
            )
    for which, x in (("features", teacher_features), ("weight", teacher_weight)):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"{name}: teacher_{which} must not require grad; pass teacher_{which}.detach()"
            )
    if num_classes is None:
        num_classes = student_weight.shape[0]
    for which, factor in zip(("margin", "distillation_weight"), factors, strict=True):
        if factor is not None and torch.is_grad_enabled() and factor.requires_grad:
            raise ValueError(f"{name}: {which} must not require grad; pass {which}.detach()")
    logits = torch.empty((*leading, num_classes), device="meta")
    shadow, *more = (
        None if x is None else torch.empty_like(x, device="meta") for x in (target, *factors)
    )
    all_of = {**settings, **(call.training or {})}
    call_op(name, torch.ops.gkd._forward, logits, logits, shadow, False, False, *more, **all_of)
    # On CUDA a row out of bounds becomes NaN, as in gkd.loss: no wait for the device.
    if target is not None and target.device.type == "cpu":
        call_op(name, torch.ops.gkd._check_target, target, num_classes, settings["ignore_index"])
