"""gkd.loss, gkd.training_loss and both linear losses with classes split over ranks (partial FC,
tensor parallel).

The collectives inside the loss are in ``csrc/sharded.cpp``. Names that end in ``_shard`` are one
rank's part.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._distributed_linear import linear_loss, training_linear_loss
from ._distributed_sparse import shard_group, sparse_loss, training_sparse_loss
from ._distributed_sparse_linear import sparse_linear_loss, training_sparse_linear_loss
from ._settings import DEFAULTS, LossSettings, all_settings, takes_settings_of
from ._shard_part import part_of
from ._sharded import attempt, run_sharded
from ._training import (
    OFF,
    Training,
    TrainingLoss,
    TrainingLossSettings,
    split_settings,
    training_of,
)
from .functional import loss as unsharded_loss
from .training import check_target_is_given
from .training import training_loss as unsharded_training_loss

__all__ = [
    "linear_loss",
    "loss",
    "shard_group",
    "sparse_linear_loss",
    "sparse_loss",
    "training_linear_loss",
    "training_loss",
    "training_sparse_linear_loss",
    "training_sparse_loss",
]

_NAME = "gkd.distributed.loss"
_TRAINING = "gkd.distributed.training_loss"


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
    given, fault = attempt(lambda: all_settings(_NAME, settings), DEFAULTS)
    value: Tensor = run_sharded(
        _NAME, logits, target, shard, given, None, fault, validate, local_target
    )
    return value


@takes_settings_of(unsharded_training_loss, TrainingLossSettings)
def training_loss(
    student_shard: Tensor,
    teacher_shard: Tensor,
    target: Tensor,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    local_target: bool = False,
    validate: bool | None = None,
    **settings: Unpack[TrainingLossSettings],
) -> TrainingLoss:
    """`gkd.training_loss` of [..., num_classes] logits, of which this rank holds a shard.

    As `gkd.distributed.loss`, with no collective more: what cross-entropy needs travels with the
    moments, 24 bytes a row. (One more for 16-bit logits with ``distill_margin``.)

    Args:
        student_shard: as in `gkd.distributed.loss`.
        teacher_shard: as in `gkd.distributed.loss`.
        target: as in `gkd.distributed.loss`; needed.
        class_start: as in `gkd.distributed.loss`.
        num_classes: as in `gkd.distributed.loss`.
        process_group: as in `gkd.distributed.loss`.
        local_target: as in `gkd.distributed.loss`.
        validate: as in `gkd.distributed.loss`; the values of tensors are not compared.
        **settings: as in `gkd.training_loss`, the same on every rank. Margins of a tensor are those
            of all rows, also of rows whose target is another rank's.

    Returns:
        A `gkd.TrainingLoss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.loss`, as are the other errors.

    Examples:
        One process that holds all the classes; under torchrun, `init_process_group()` alone.

        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        >>> student, teacher, target = torch.rand(4, 50), torch.rand(4, 50), torch.arange(4)
        >>> head = {"scale": 64.0, "margin": 0.4}
        >>> whole = gkd.training_loss(student, teacher, target, **head)
        >>> part = {"class_start": 0, "num_classes": 50}
        >>> value = gkd.distributed.training_loss(student, teacher, target, **head, **part)
        >>> torch.allclose(value.total, whole.total)
        True
        >>> dist.destroy_process_group()
    """
    check_target_is_given(_TRAINING, target)
    logits, shard = part_of(
        _TRAINING, (student_shard, teacher_shard), 1, process_group, class_start, num_classes
    )

    def plain_values() -> tuple[dict[str, Any], Training]:
        given, head = split_settings(settings)
        return all_settings(_TRAINING, given), training_of(_TRAINING, target.shape, head)

    (given, training), fault = attempt(plain_values, (DEFAULTS, Training(OFF)))
    value = run_sharded(
        _TRAINING, logits, target, shard, given, training, fault, validate, local_target
    )
    return TrainingLoss(*value)
