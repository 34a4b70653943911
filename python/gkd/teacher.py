"""Teachers without their logits: the group of every row and one number for all other classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._settings import DEFAULT_THRESHOLD, all_settings, call_op


class TeacherGroup(NamedTuple):
    """What a loss without Secondary-KD needs of a teacher: B rows in compressed sparse row form.

    With the teacher's ranking and ``secondary_weight=0`` the loss depends on the teacher through
    nothing else. Row b's classes are ``indices[indptr[b] : indptr[b + 1]]``, their logits are
    ``logits`` at the same places, n = indptr[B] in all. T and T_g, threshold or size are not in it:
    whoever keeps it keeps them beside it, as `gkd.cache` does.

    Attributes:
        indptr: int64 [B + 1], where each row begins; indptr[0] = 0, and no entry is less than the
            one before it.
        indices: int32 [n], the classes of the primary groups, strictly ascending within a row.
        logits: [n], the teacher's logits of these classes, before T; float16, bfloat16, float32 or
            float64.
        rest: float64 [B], whatever ``logits`` are: log sum exp(u_j / T) over all classes outside
            the row's group; -inf where there are none. NaN, with an empty group, for a row that
            held NaN or +inf, no finite logit, or one that the dtype of ``logits`` cannot hold. The
            losses and `gkd.cache` take float32 too, which has too few digits where student and
            teacher nearly agree.
    """

    indptr: Tensor
    indices: Tensor
    logits: Tensor
    rest: Tensor


class Grouping(NamedTuple):
    """The settings of a teacher's groups, each resolved where it was not given."""

    threshold: float | None
    group_size: int | None
    temperature: float
    group_temperature: float


def grouping_of(
    name: str,
    threshold: float | None,
    group_size: int | None,
    temperature: float,
    group_temperature: float | None,
) -> Grouping:
    """Plain values, checked as `gkd.loss` checks them; errors name the function ``name``."""
    given = all_settings(
        name,
        {
            "threshold": threshold,
            "group_size": group_size,
            "temperature": temperature,
            "group_temperature": group_temperature,
        },
    )
    # The operator's own checks, of one class on a device without memory.
    logit = torch.empty(1, 1, device="meta")
    call_op(name, torch.ops.gkd._forward, logit, logit, None, False, False, **given)
    if given["threshold"] is None and given["group_size"] is None:
        given["threshold"] = DEFAULT_THRESHOLD
    if given["group_temperature"] is None:
        given["group_temperature"] = given["temperature"]
    return Grouping(**{field: given[field] for field in Grouping._fields})
