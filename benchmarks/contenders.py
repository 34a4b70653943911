"""Everything that is timed: gkd, what a user writes today, plain KD, peers, and a copy.

Each contender is a function of (student, teacher) that returns a scalar loss, but for the copy and
quack's softmax, which have no backward. Peers that are not there are listed in ``MISSING``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import gkd

TEMPERATURE, THRESHOLD, PRIMARY = 4.0, 0.93, 8.0
MISSING: dict[str, str] = {}


@dataclass(frozen=True)
class Contender:
    name: str
    make: Callable[[], Callable[[Tensor, Tensor], Tensor]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiled: bool = False


#: Timed as they are in both stages.
FORWARD_ONLY = ("copy", "quack_softmax")


def user(student: Tensor, teacher: Tensor) -> Tensor:
    """Grouped KD in plain PyTorch: full sort, scattered mask, masked softmaxes."""
    ordered, index = teacher.sort(dim=1, descending=True)
    probability = (ordered / TEMPERATURE).softmax(1)
    kept = probability.cumsum(1) - probability < THRESHOLD
    mask = torch.zeros_like(teacher).scatter(1, index, kept.to(teacher.dtype))
    q, p = (student / TEMPERATURE).softmax(1), (teacher / TEMPERATURE).softmax(1)
    binary = student.new_zeros(len(student))
    for members in (mask, 1 - mask):
        in_p, in_q = (p * members).sum(1), (q * members).sum(1)
        binary = binary + in_p * (in_p / in_q).log()
    outside = -1000.0 * (1 - mask)
    log_q = (student / TEMPERATURE + outside).log_softmax(1)
    primary = F.kl_div(log_q, (teacher / TEMPERATURE + outside).softmax(1), reduction="none").sum(1)
    return TEMPERATURE**2 * (binary + PRIMARY * primary).mean()


def plain_kd(student: Tensor, teacher: Tensor) -> Tensor:
    log_q = F.log_softmax(student / TEMPERATURE, 1)
    p = F.softmax(teacher / TEMPERATURE, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def gkd_as_plain_kd(student: Tensor, teacher: Tensor) -> Tensor:
    return gkd.loss(
        student, teacher, group_size=0, coupled=True, primary_weight=1.0, secondary_weight=1.0
    )


def _copy() -> Callable[[Tensor, Tensor], Tensor]:
    """Reads two tensors and writes a third: the bytes that no loss with a gradient can avoid."""
    out: dict[tuple[object, ...], Tensor] = {}

    def run(student: Tensor, teacher: Tensor) -> Tensor:
        key = (student.shape, student.dtype, student.device)
        if key not in out:
            out.clear()
            out[key] = torch.empty_like(student)
        return torch.add(student.detach(), teacher, out=out[key])

    return run


def _liger(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.functional import liger_jsd, liger_kl_div  # type: ignore

    def kl(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = F.log_softmax(student / TEMPERATURE, 1)
        p = F.softmax(teacher / TEMPERATURE, 1)
        return liger_kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2

    def jsd(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = F.log_softmax(student / TEMPERATURE, 1)
        log_p = F.log_softmax(teacher / TEMPERATURE, 1)
        return liger_jsd(log_q, log_p, beta=0.5) * TEMPERATURE**2

    return kl if kind == "kl" else jsd


def _quack() -> Callable[[Tensor, Tensor], Tensor]:
    from quack import softmax  # type: ignore

    return lambda student, teacher: softmax(student)


def available(device: str, compiled: bool) -> list[Contender]:
    """The contenders that run here, gkd first and the copy last; the rest go to MISSING."""
    every = [
        Contender("gkd", lambda: gkd.loss),
        Contender("gkd_sort", lambda: lambda s, t: gkd.loss(s, t, method="sort")),
        Contender("gkd_as_kd", lambda: gkd_as_plain_kd),
        Contender("user_eager", lambda: user),
        Contender("user_compiled", partial(torch.compile, user, dynamic=False), compiled=True),
        Contender("kd_eager", lambda: plain_kd),
        Contender("kd_compiled", partial(torch.compile, plain_kd, dynamic=False), compiled=True),
        Contender("liger_kl_div", lambda: _liger("kl"), devices=("cuda",)),
        Contender("liger_jsd", lambda: _liger("jsd"), devices=("cuda",)),
        Contender("quack_softmax", _quack, devices=("cuda",)),
        Contender("copy", _copy),
    ]
    usable = []
    for contender in every:
        if device not in contender.devices:
            MISSING[contender.name] = f"runs on {', '.join(contender.devices)} only"
        elif contender.compiled and not compiled:
            MISSING[contender.name] = "left out by --no-compile or --quick"
        else:
            try:
                contender.make()
            except Exception as error:  # noqa: BLE001 - whatever an optional package raises on import
                MISSING[contender.name] = f"{type(error).__name__}: {error}"
                continue
            usable.append(contender)
    return usable
