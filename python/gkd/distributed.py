"""gkd.loss and gkd.linear_loss with classes split over ranks (partial FC, tensor parallel).

The collectives inside the loss are in ``csrc/sharded.cpp``. Names that end in ``_shard`` are one
rank's part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._agreement import check_agreement
from ._linear_check import Call, check_call
from ._settings import (
    DEFAULTS,
    FLAG,
    LossSettings,
    all_settings,
    call_op,
    is_dtensor,
    plain,
    takes_settings_of,
)
from ._shard_part import Shard, part_of, replicated
from .functional import loss as unsharded_loss
from .linear import run_linear

_NAME = "gkd.distributed.loss"
_LINEAR = "gkd.distributed.linear_loss"


@takes_settings_of(unsharded_loss)
def loss(
    student_shard: Tensor,
    teacher_shard: Tensor,
    target: Tensor | None = None,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    local_target: bool = False,
    validate: bool | None = None,
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`gkd.loss` of [..., num_classes] logits, of which this rank holds a shard of the classes.

    Every rank of ``process_group`` calls it with the same rows and settings, and gets the same
    loss; the gradient is that of the rank's own shard, complete and without a factor of the world
    size.

    7 collectives for float32 logits, 6 for 16-bit and 10 for float64 ones, for any data, and
    none in the backward; 57 KB a row (docs/performance.md). An all-reduce more with
    ``local_target``, an all-gather of under 500 bytes more in a call that validates.

    Args:
        student_shard: [..., C_r], float16, bfloat16, float32 or float64; C_r may be 0, and differ
            between ranks. Or a DTensor [B, C] with Shard(1), which has ``process_group``,
            ``class_start`` and ``num_classes`` in it.
        teacher_shard: the same shape, device and classes; must not require grad.
        target: int64 or int32 [...], the same on every rank, counted from class 0 of the whole row.
        class_start: the shard's first class.
        num_classes: of the whole row, at most 2^31 - 1.
        process_group: the ranks that hold the shards, in any order; the default group where None.
        local_target: targets are in partial FC's convention instead: counted from the shard's first
            class, and -1 for another rank's class. Rows that no rank claims are ignored.
        validate: compare shapes, settings, shards and targets between ranks first, which waits for
            the device, and raise the same error on all of them. None: in a group's first call, and
            in all with TORCH_DISTRIBUTED_DEBUG. Without it, a row with a target out of bounds has
            loss and gradient NaN, and ranks that disagree are not found out.
        **settings: as in `gkd.loss`.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where either input is.

    Raises:
        ValueError: as in `gkd.loss`; shards that do not make up the row, ranks that disagree.
        TypeError: a dtype that is not supported, a DTensor together with a plain tensor.
        IndexError: a target out of bounds, in a call that validates.
        RuntimeError: no process group, or a rank that was lost.

    Examples:
        One process that holds all the classes; under torchrun, `init_process_group()` alone.

        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        >>> student, teacher = torch.randn(4, 50), torch.randn(4, 50)
        >>> whole = gkd.loss(student, teacher)
        >>> value = gkd.distributed.loss(student, teacher, class_start=0, num_classes=50)
        >>> torch.allclose(value, whole)
        True
        >>> dist.destroy_process_group()
    """
    logits, shard = part_of(
        _NAME, (student_shard, teacher_shard), 1, process_group, class_start, num_classes
    )
    target = target.full_tensor() if is_dtensor(target) else target  # type: ignore[union-attr]
    # A rank that raised alone would leave the others waiting: see check_agreement.
    given, fault = _attempt(lambda: all_settings(_NAME, settings), DEFAULTS)
    try:
        if not torch.compiler.is_compiling():
            tensors = (*logits, target)
            check_agreement(_NAME, shard, tensors, given, fault, validate, local_target)
        fault()
        if plain(_NAME, "local_target", local_target, FLAG) and target is not None:
            target = _global_target(target, logits[0].shape[-1], shard, given["ignore_index"])
        classes = (shard.class_start, shard.num_classes)
        ranks = (dist.get_world_size(shard.group), shard.group.group_name)
        op = torch.ops.gkd.sharded_loss
        value: Tensor = call_op(_NAME, op, *logits, target, *classes, *ranks, **given)
    except RuntimeError as error:
        if str(error).startswith(_NAME):
            raise
        raise RuntimeError(f"{_NAME}: the ranks lost one another: {error}") from error
    return value


@takes_settings_of(unsharded_loss)
def linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    reduce_features_grad: bool = True,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`gkd.linear_loss` where every rank of a group holds the weights of some of the classes.

    Features, target and every setting are the same on all ranks, as is the loss. The gradient of
    the features, too, is that of the whole, by one all-reduce of [B, D_s]; the weight's is this
    rank's own. The ranks compare their calls in a group's first one.

    Args:
        student_features: [..., D_s], the same on every rank.
        student_weight: [C_r, D_s], this rank's run of the classes. Or a DTensor [C, D_s] with
            Shard(0), as FSDP2 and tensor parallelism keep it, which has ``process_group``,
            ``class_start`` and ``num_classes`` in it; its gradient is a DTensor too.
        teacher_features: [..., D_t], the same on every rank.
        teacher_weight: [C_r, D_t], of the same classes; a DTensor where the student's is one.
        target: [B], counted from class 0 of the whole.
        class_start: the first class that this rank holds.
        num_classes: of all ranks together.
        process_group: the ranks that hold the classes; the default group where None.
        reduce_features_grad: sum the features' gradient over the ranks. False leaves each rank its
            own part of the sum, for features that come from an all-gather whose backward adds up
            what the ranks have, as in partial FC: summed here too, the gradient would be
            ``world_size`` times too large.
        scale: as in `gkd.linear_loss`.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`, and the same on every rank.
        **settings: as in `gkd.loss`.

    Returns:
        As `gkd.linear_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.linear_loss` and `gkd.distributed.loss`, as are the other errors.
    """
    weights, shard = part_of(
        _LINEAR, (student_weight, teacher_weight), 0, process_group, class_start, num_classes
    )
    features = (
        replicated(_LINEAR, "student", student_features),
        replicated(_LINEAR, "teacher", teacher_features),
    )
    tensors = (features[0], weights[0], features[1], weights[1])
    call, fault = _attempt(
        lambda: Call.of(_LINEAR, scale, normalize, chunk_rows, settings),
        Call.of(_LINEAR, None, True, None, {}),
    )
    summed = plain(_LINEAR, "reduce_features_grad", reduce_features_grad, FLAG)
    if not torch.compiler.is_compiling():

        def check() -> None:
            fault()
            check_call(call, tensors, target, shard.num_classes)

        # What the logits would be, without their memory.
        shape = (*features[0].shape[:-1], *weights[0].shape[:1])
        student, teacher = (x.new_empty((1,) * len(shape)).expand(shape) for x in features)
        more = {
            "scale": call.scale,
            "normalize": call.normalize,
            "chunk_rows": call.chunk_rows,
            "reduce_features_grad": summed,
        }
        given = (student, teacher, target)
        check_agreement(_LINEAR, shard, given, call.settings, check, more=more)
    fault()
    return run_linear(tensors, target, call, shard._replace(reduce_features_grad=summed))


def _attempt(make: Callable[[], Any], otherwise: Any) -> tuple[Any, Callable[[], None]]:
    """What ``make`` returns, or ``otherwise``; and a function that raises what ``make`` raised."""
    try:
        return make(), lambda: None
    except (TypeError, ValueError) as error:
        kept = error

    def fault() -> None:
        raise kept

    return otherwise, fault


def _global_target(target: Tensor, classes: int, shard: Shard, ignore_index: int) -> Tensor:
    """Partial FC's targets as classes of the whole row, by one maximum over ranks."""
    nowhere = -1
    elsewhere = (target == -1) | (target == ignore_index)
    # Out of bounds on one rank: out of bounds for all, whatever the others claim.
    invalid = (target < 0) | (target >= classes)
    mine = torch.where(invalid, shard.num_classes, target.long() + shard.class_start)
    mine = torch.where(elsewhere, nowhere, mine)
    ops = torch.ops._c10d_functional
    whole: Tensor = ops.wait_tensor(ops.all_reduce(mine, "max", shard.group.group_name))
    return torch.where(whole == nowhere, ignore_index, whole)
