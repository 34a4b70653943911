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


class Agreement:
    """One rank's call of a class-sharded operator ``name``."""

    def __init__(
        self,
        name: str,
        group: dist.ProcessGroup,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None,
        settings: dict[str, Any],
        more: dict[str, Any] | None = None,
        own_check: Callable[[], None] = lambda: None,
    ) -> None:
        """settings: of the operator; more: what else must be equal; own_check: raises or not."""
        self.name, self.group = name, group
        self.more, self.own_check = more or {}, own_check
        self.student, self.teacher, self.target = student, teacher, target
        self.settings = settings

    def check(self, validate: bool | None, local_target: bool) -> None:
        """Raises the same error on every rank, or on none; see ``validate`` of the operators."""
        known = self.group in _agreed
        if validate is None:
            validate = not known or os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF") != "OFF"
        if not validate:
            return
        fault = self._own_fault(local_target)
        shared = {
            "rows": math.prod(self.student.shape[:-1]),
            "the student's dtype": self.student.dtype,
            "the teacher's dtype": self.teacher.dtype,
            "whether there is a target": self.target is not None,
            "local_target": local_target,
            **self.more,
            **{k: v for k, v in self.settings.items() if k not in _OWN},
        }
        own = {
            "status": 0 if fault is None else 1 + _ERRORS.index(fault.kind),
            "class_start": self.settings["class_start"],
            "classes": self.student.shape[-1] if self.student.dim() > 0 else 0,
        }
        text = b"" if fault is None else fault.text.encode()[:_MESSAGE_BYTES]
        message = struct.unpack(f"{_MESSAGE_BYTES // 8}q", text.ljust(_MESSAGE_BYTES, b"\0"))
        mine = [*own.values(), *map(_number, shared.values()), *message]
        row = torch.tensor(mine, dtype=torch.int64, device=self.student.device)
        gathered = [torch.empty_like(row) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(gathered, row, group=self.group)
        found = self._fault_of([x.tolist() for x in gathered], [*own, *shared])
        if found is not None:
            raise found.kind(f"{self.name}: {found.text}")
        _agreed.add(self.group)

    def _own_fault(self, local_target: bool) -> _Fault | None:
        try:
            self.own_check()
            torch.ops.gkd._check_shard(self.student, self.teacher, self.target, **self.settings)
            if self.target is not None and not local_target:
                torch.ops.gkd._check_target(
                    self.target, self.settings["num_classes"], self.settings["ignore_index"]
                )
        except _ERRORS as error:
            kind = next(k for k in _ERRORS if isinstance(error, k))
            return _Fault(kind, str(error).split("\n")[0].split(": ", 1)[-1])
        return None

    def _fault_of(self, table: list[list[int]], columns: list[str]) -> _Fault | None:
        """What is wrong with the ranks' rows; every rank comes to the same answer."""
        for rank, row in enumerate(table):
            if row[0] != 0:
                raw = struct.pack(f"{len(row) - len(columns)}q", *row[len(columns) :])
                text = raw.rstrip(b"\0").decode(errors="ignore")
                return _Fault(_ERRORS[row[0] - 1], f"rank {rank}: {text}")
        for k, column in enumerate(columns):
            if column in _OWN:
                continue
            for rank, row in enumerate(table):
                if row[k] != table[0][k]:
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
        if at != self.settings["num_classes"]:
            return _Fault(
                ValueError,
                f"num_classes must be {at}, what the ranks hold together, "
                f"got {self.settings['num_classes']}",
            )
        return None
