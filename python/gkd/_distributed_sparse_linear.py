"""Both linear losses of a grouped teacher where every rank holds the weights of some classes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._linear_check import Call
from ._settings import takes_settings_of
from ._sharded import attempt, run_sharded_linear
from ._training import OFF, Training, TrainingLoss, split_settings, training_of
from .functional import loss
from .sparse import LinearSparseSettings, SparseSettings, check_group, training_sparse_loss
from .teacher import TeacherGroup
from .training import check_target_is_given

_LINEAR = "gkd.distributed.sparse_linear_loss"
_TRAINING_LINEAR = "gkd.distributed.training_sparse_linear_loss"


@takes_settings_of(loss, SparseSettings)
def sparse_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    group_shard: TeacherGroup,
    target: Tensor | None = None,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    reduce_features_grad: bool = True,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[SparseSettings],
) -> Tensor:
    """`gkd.sparse_linear_loss` where every rank of a group holds the weights of some classes.

    The gradient of the features is that of the whole, by one all-reduce of [B, D]; the weight's is
    this rank's own. The ranks compare their calls in a group's first one.

    Args:
        student_features: [..., D], the same on every rank.
        student_weight: [C_r, D], or a DTensor, as in `gkd.distributed.linear_loss`.
        group_shard: as in `gkd.distributed.sparse_loss`.
        target: as in `gkd.distributed.linear_loss`.
        class_start: as in `gkd.distributed.linear_loss`.
        num_classes: as in `gkd.distributed.linear_loss`.
        process_group: as in `gkd.distributed.linear_loss`.
        reduce_features_grad: as in `gkd.distributed.linear_loss`.
        scale: as in `gkd.linear_loss`.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`, and the same on every rank.
        **settings: as in `gkd.sparse_loss`.

    Returns:
        As `gkd.sparse_linear_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.sparse_loss`, as are the other errors.
    """
    name = _LINEAR
    check_group(name, group_shard)
    call, fault = attempt(
        lambda: Call.of(name, scale, normalize, chunk_rows, settings, is_sparse=True),
        Call.of(name, None, True, None, {}, is_sparse=True),
    )
    where = (process_group, class_start, num_classes)
    return run_sharded_linear(
        (student_features,),
        (student_weight,),
        target,
        where,
        reduce_features_grad,
        call,
        fault,
        group=group_shard,
    )[0]


@takes_settings_of(training_sparse_loss, LinearSparseSettings)
def training_sparse_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    group_shard: TeacherGroup,
    target: Tensor,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    reduce_features_grad: bool = True,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[LinearSparseSettings],
) -> TrainingLoss:
    """`gkd.training_sparse_linear_loss` where every rank holds the weights of some classes.

    Args:
        student_features: as in `gkd.distributed.sparse_linear_loss`.
        student_weight: as in `gkd.distributed.sparse_linear_loss`.
        group_shard: as in `gkd.distributed.sparse_loss`.
        target: as in `gkd.distributed.linear_loss`; needed.
        class_start: as in `gkd.distributed.linear_loss`.
        num_classes: as in `gkd.distributed.linear_loss`.
        process_group: as in `gkd.distributed.linear_loss`.
        reduce_features_grad: as in `gkd.distributed.linear_loss`.
        scale: as in `gkd.linear_loss`.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`, and the same on every rank.
        **settings: as in `gkd.training_sparse_linear_loss`, the same on every rank.

    Returns:
        As `gkd.training_sparse_linear_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.sparse_loss`, as are the other errors.
    """
    name = _TRAINING_LINEAR
    check_target_is_given(name, target)
    check_group(name, group_shard)

    def plain_values() -> tuple[Call, Training]:
        given, head = split_settings(settings)
        training = training_of(name, target.shape, head)
        own = training.settings
        return Call.of(name, scale, normalize, chunk_rows, given, own, is_sparse=True), training

    other = Call.of(name, None, True, None, {}, OFF, is_sparse=True)
    (call, training), fault = attempt(plain_values, (other, Training(OFF)))
    where = (process_group, class_start, num_classes)
    return TrainingLoss(
        *run_sharded_linear(
            (student_features,),
            (student_weight,),
            target,
            where,
            reduce_features_grad,
            call,
            fault,
            training,
            group_shard,
        )
    )
