"""Whether all ranks make the same call, found out without any of them raising alone.

A rank that raised by itself would leave the others waiting in a collective. So each one checks its
own part quietly, all exchange one row of numbers, and all look at the same table: they raise the
same error, or none does.
"""

from __future__ import annotations

import math
import os
import struct
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ._shard_part import Shard
from ._training import Training

_MESSAGE_BYTES = 256
_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, IndexError, RuntimeError)
#: What only has to fit together, not to be equal.
_OWN = ("status", "class_start", "classes")
#: Groups that have agreed once; ranks of a group call this as often as one another. By the group
#: itself: a name comes again with the next group, whose ranks may be others.
_agreed: weakref.WeakSet[dist.ProcessGroup] = weakref.WeakSet()


class _Fault(NamedTuple):
    kind: type[Exception]
    text: str


def _number(value: object) -> int:
    """An int64 that two ranks have in common just where they have the value in common."""
    if value is None:
        return -(2**63)
    if isinstance(value, float):
        return int(struct.unpack("q", struct.pack("d", value))[0])
    if isinstance(value, int):
        return value
    return int.from_bytes(str(value).encode()[-7:], "big")


def _digest(values: Tensor | None) -> int | None:
    """Two tensors of one shape that differ in any element have the same one by accident only."""
    if values is None:
        return None
    whole = values.detach().flatten()
    bits = whole.double().view(torch.int64) if whole.is_floating_point() else whole.long()
    odd = 2 * torch.arange(bits.numel(), device=bits.device) + 1
    return int((bits * (odd * 0x9E3779B97F4A7C1)).sum())  # modulo 2^64


def check_agreement(
    name: str,
    shard: Shard,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    settings: dict[str, Any],
    own_check: Callable[[], None],
    validate: bool | None = None,
    local_target: bool = False,
    training: Training | None = None,
    more: dict[str, Any] | None = None,
    rest: Tensor | None = None,
) -> None:
    """Raises the same error on every rank, or on none; see ``validate`` of the operators.

    tensors: logits of the class-sharded operator ``name``, and targets. settings, training: of the
    operator; more: what else must be equal; own_check: raises where this rank's call is wrong;
    rest: of sparse groups.
    """
    known = shard.group in _agreed
    if validate is None:
        validate = not known or os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF") != "OFF"
    if not validate:
        return
    student, teacher, target = tensors
    fault = _own_fault(shard, tensors, settings, training, own_check, local_target)
    shared = {
        "rows": math.prod(student.shape[:-1]),
        "the student's dtype": student.dtype,
        "the teacher's dtype": teacher.dtype,
        "whether there is a target": target is not None,
        "local_target": local_target,
        **_shared_of(training),
        **(more or {}),
        **settings,
        "num_classes": shard.num_classes,
    }
    if fault is None:  # else these may be no tensors of numbers, and the fault is told anyway
        shared["the targets"] = None if local_target else _digest(target)
        shared["teacher_group.rest"] = _digest(rest)
    else:
        shared |= dict.fromkeys(("the targets", "teacher_group.rest"))
    own = {
        "status": 0 if fault is None else 1 + _ERRORS.index(fault.kind),
        "class_start": shard.class_start,
        "classes": student.shape[-1] if student.dim() > 0 else 0,
    }
    text = b"" if fault is None else fault.text.encode()[:_MESSAGE_BYTES]
    message = struct.unpack(f"{_MESSAGE_BYTES // 8}q", text.ljust(_MESSAGE_BYTES, b"\0"))
    mine = [*own.values(), *map(_number, shared.values()), *message]
    row = torch.tensor(mine, dtype=torch.int64, device=student.device)
    gathered = [torch.empty_like(row) for _ in range(dist.get_world_size(shard.group))]
    dist.all_gather(gathered, row, group=shard.group)
    found = _fault_of([x.tolist() for x in gathered], [*own, *shared], shard.num_classes)
    if found is not None:
        raise found.kind(f"{name}: {found.text}")
    _agreed.add(shard.group)


def _shared_of(training: Training | None) -> dict[str, Any]:
    """What of it all ranks must have; not the values in tensors."""
    if training is None:
        return {}
    tensors = ("margin", training.margins), ("distillation_weight", training.distillation_factor)
    kinds = {f"whether {name} is a tensor": value is not None for name, value in tensors}
    return {**training.settings, **kinds}


def _own_fault(
    shard: Shard,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    settings: dict[str, Any],
    training: Training | None,
    own_check: Callable[[], None],
    local_target: bool,
) -> _Fault | None:
    ops, target = torch.ops.gkd, tensors[2]
    try:
        own_check()
        more = {} if training is None else training.arguments()
        ops._check_shard(*tensors, shard.class_start, shard.num_classes, **settings, **more)
        if target is not None and not local_target:
            ops._check_target(target, shard.num_classes, settings["ignore_index"])
    except _ERRORS as error:
        kind = next(k for k in _ERRORS if isinstance(error, k))
        return _Fault(kind, str(error).split("\n")[0].split(": ", 1)[-1])
    return None


def _fault_of(table: list[list[int]], columns: list[str], num_classes: int) -> _Fault | None:
    """What is wrong with the ranks' rows; every rank comes to the same answer."""
    for rank, row in enumerate(table):
        if row[0] != 0:
            raw = struct.pack(f"{len(row) - len(columns)}q", *row[len(columns) :])
            text = raw.rstrip(b"\0").decode(errors="ignore")
            return _Fault(_ERRORS[row[0] - 1], f"rank {rank}: {text}")
    for k, column in enumerate(columns):
        for rank, row in enumerate(table):
            if column not in _OWN and row[k] != table[0][k]:
                return _Fault(ValueError, f"ranks 0 and {rank} disagree on {column}")
    at = 0
    for start, classes, rank in sorted((r[1], r[2], k) for k, r in enumerate(table) if r[2]):
        if start != at:
            return _Fault(
                ValueError,
                f"class_start of rank {rank} must be {at}, where the classes before it end, "
                f"got {start}",
            )
        at += classes
    if at != num_classes:
        return _Fault(
            ValueError,
            f"num_classes must be {at}, what the ranks hold together, got {num_classes}",
        )
    return None
