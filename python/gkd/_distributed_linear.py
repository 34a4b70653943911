"""Both linear losses where every rank of a group holds the weights of some of the classes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from ._linear_check import Call
from ._settings import LossSettings, takes_settings_of
from ._sharded import attempt, run_sharded_linear
from ._training import (
    OFF,
    LinearTrainingSettings,
    Training,
    TrainingLoss,
    split_settings,
    training_of,
)
from .functional import loss
from .training import check_target_is_given, training_loss

_LINEAR = "gkd.distributed.linear_loss"
_TRAINING_LINEAR = "gkd.distributed.training_linear_loss"


@takes_settings_of(loss)
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
    call, fault = attempt(
        lambda: Call.of(_LINEAR, scale, normalize, chunk_rows, settings),
        Call.of(_LINEAR, None, True, None, {}),
    )
    features = (student_features, teacher_features)
    weights = (student_weight, teacher_weight)
    where = (process_group, class_start, num_classes)
    return run_sharded_linear(features, weights, target, where, reduce_features_grad, call, fault)[
        0
    ]


@takes_settings_of(training_loss, LinearTrainingSettings)
def training_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    target: Tensor,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    reduce_features_grad: bool = True,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[LinearTrainingSettings],
) -> TrainingLoss:
    """`gkd.training_linear_loss` where every rank of a group holds the weights of some classes.

    Args:
        student_features: as in `gkd.distributed.linear_loss`, as are the other three.
        student_weight: [C_r, D_s], or a DTensor.
        teacher_features: [..., D_t].
        teacher_weight: [C_r, D_t], or a DTensor.
        target: [B], counted from class 0 of the whole.
        class_start: as in `gkd.distributed.linear_loss`.
        num_classes: as in `gkd.distributed.linear_loss`.
        process_group: as in `gkd.distributed.linear_loss`.
        reduce_features_grad: as in `gkd.distributed.linear_loss`.
        scale: as in `gkd.linear_loss`.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`, and the same on every rank.
        **settings: as in `gkd.training_linear_loss`, the same on every rank.

    Returns:
        As `gkd.training_linear_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.linear_loss`, as are the other errors.
    """
    name = _TRAINING_LINEAR
    check_target_is_given(name, target)

    def plain_values() -> tuple[Call, Training]:
        given, head = split_settings(settings)
        training = training_of(name, target.shape, head)
        return Call.of(name, scale, normalize, chunk_rows, given, training.settings), training

    otherwise = (Call.of(name, None, True, None, {}, OFF), Training(OFF))
    (call, training), fault = attempt(plain_values, otherwise)
    features = (student_features, teacher_features)
    weights = (student_weight, teacher_weight)
    where = (process_group, class_start, num_classes)
    return TrainingLoss(
        *run_sharded_linear(
            features, weights, target, where, reduce_features_grad, call, fault, training
        )
    )
