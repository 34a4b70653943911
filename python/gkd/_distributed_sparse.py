"""gkd.sparse_loss and gkd.training_sparse_loss with classes split over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Unpack

from ._agreement import check_agreement
from ._settings import DEFAULTS, FLAG, INTEGER, all_settings, call_op, plain, takes_settings_of
from ._shard_part import part_of
from ._sharded import attempt, global_target, ranks_kept
from ._training import OFF, Training, TrainingLoss, split_settings, training_of
from .functional import loss
from .sparse import SparseSettings, SparseTrainingSettings, check_group
from .sparse import training_sparse_loss as unsharded_training_sparse_loss
from .teacher import TeacherGroup
from .training import check_target_is_given

_NAME = "gkd.distributed.sparse_loss"
_TRAINING = "gkd.distributed.training_sparse_loss"


def shard_group(teacher_group: TeacherGroup, class_start: int, class_end: int) -> TeacherGroup:
    """The part of a whole row's groups that falls in a run of the classes.

    Args:
        teacher_group: a `gkd.TeacherGroup` of all classes.
        class_start: the run's first class.
        class_end: the class after its last one.

    Returns:
        A `gkd.TeacherGroup` on the same device with the same ``rest``, whose classes count from
        ``class_start``: what `gkd.distributed.sparse_loss` takes. A device is waited for.

    Raises:
        ValueError: a run that is none.
        TypeError: a group that is none.

    Examples:
        >>> kept = gkd.teacher_group(torch.tensor([[8.0, 0.0, 7.0, -1.0]]), temperature=1.0)
        >>> gkd.distributed.shard_group(kept, 2, 4).indices
        tensor([0], dtype=torch.int32)
    """
    name = "gkd.distributed.shard_group"
    check_group(name, teacher_group)
    start = plain(name, "class_start", class_start, INTEGER)
    end = plain(name, "class_end", class_end, INTEGER)
    if not 0 <= start <= end:
        raise ValueError(f"{name}: 0 <= class_start <= class_end, got {start} and {end}")
    indptr, indices, logits, rest = teacher_group
    kept = (indices >= start) & (indices < end)
    before = pad(kept.cumsum(0), (1, 0))
    return TeacherGroup(before[indptr], indices[kept] - start, logits[kept], rest)


@takes_settings_of(loss, SparseSettings)
def sparse_loss(
    student_shard: Tensor,
    group_shard: TeacherGroup,
    target: Tensor | None = None,
    *,
    class_start: int,
    num_classes: int,
    process_group: dist.ProcessGroup | None = None,
    local_target: bool = False,
    validate: bool | None = None,
    **settings: Unpack[SparseSettings],
) -> Tensor:
    """`gkd.sparse_loss` of [..., num_classes] logits, of which this rank holds a shard.

    As `gkd.distributed.loss`, but 2 collectives for any dtype, all-gathers of 104 and 16 bytes a
    row: a group needs no search for a cut.

    Args:
        student_shard: [..., C_r], as in `gkd.distributed.loss`, but no DTensor.
        group_shard: the part of each row's group that falls in this shard, counted from
            ``class_start``, and the whole row's ``rest``: what `gkd.distributed.shard_group` makes
            of a whole group.
        target: as in `gkd.distributed.loss`, each in its row's group.
        class_start: the shard's first class.
        num_classes: of the whole row.
        process_group: as in `gkd.distributed.loss`.
        local_target: as in `gkd.distributed.loss`.
        validate: as in `gkd.distributed.loss`, and the group's numbers are checked. Without it, a
            row whose numbers cannot be used, or whose target is not in its group, has loss and
            gradient NaN.
        **settings: as in `gkd.sparse_loss`.

    Returns:
        As `gkd.sparse_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.loss` and `gkd.sparse_loss`, as are the other errors.

    Examples:
        One process that holds all the classes; under torchrun, `init_process_group()` alone.

        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        >>> student, kept = torch.randn(4, 50), gkd.teacher_group(torch.randn(4, 50))
        >>> whole = gkd.sparse_loss(student, kept)
        >>> part = gkd.distributed.shard_group(kept, 0, 50)
        >>> value = gkd.distributed.sparse_loss(student, part, class_start=0, num_classes=50)
        >>> torch.allclose(value, whole)
        True
        >>> dist.destroy_process_group()
    """
    given, fault = attempt(lambda: all_settings(_NAME, settings), DEFAULTS)
    where = (process_group, class_start, num_classes)
    value: Tensor = _run(
        _NAME, student_shard, group_shard, target, where, given, None, fault, validate, local_target
    )
    return value


@takes_settings_of(unsharded_training_sparse_loss, SparseTrainingSettings)
def training_sparse_loss(
    student_shard: Tensor,
    group_shard: TeacherGroup,
    target: Tensor,
    *,
    class_start: int,
    num_classes: int,
    process_group: dist.ProcessGroup | None = None,
    local_target: bool = False,
    validate: bool | None = None,
    **settings: Unpack[SparseTrainingSettings],
) -> TrainingLoss:
    """`gkd.training_sparse_loss` of logits of which this rank holds a shard.

    As `gkd.distributed.sparse_loss`, with no collective more and 24 bytes a row more.

    Args:
        student_shard: as in `gkd.distributed.sparse_loss`.
        group_shard: as in `gkd.distributed.sparse_loss`.
        target: as in `gkd.distributed.sparse_loss`; needed.
        class_start: as in `gkd.distributed.sparse_loss`.
        num_classes: as in `gkd.distributed.sparse_loss`.
        process_group: as in `gkd.distributed.loss`.
        local_target: as in `gkd.distributed.loss`.
        validate: as in `gkd.distributed.sparse_loss`.
        **settings: as in `gkd.training_sparse_loss`, the same on every rank.

    Returns:
        A `gkd.TrainingLoss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.distributed.sparse_loss`, as are the other errors.
    """
    check_target_is_given(_TRAINING, target)

    def plain_values() -> tuple[dict[str, Any], Training]:
        given, head = split_settings(settings)
        return all_settings(_TRAINING, given), training_of(_TRAINING, target.shape, head)

    (given, training), fault = attempt(plain_values, (DEFAULTS, Training(OFF)))
    where = (process_group, class_start, num_classes)
    value = _run(
        _TRAINING,
        student_shard,
        group_shard,
        target,
        where,
        given,
        training,
        fault,
        validate,
        local_target,
    )
    return TrainingLoss(*value)


def _run(
    name: str,
    student: Tensor,
    group: TeacherGroup,
    target: Tensor | None,
    place: tuple[dist.ProcessGroup | None, int, int],
    given: dict[str, Any],
    training: Training | None,
    fault: Callable[[], None],
    validate: bool | None,
    local_target: bool,
) -> Any:
    check_group(name, group)
    (student, _), shard = part_of(name, (student, student), 1, *place)
    where = (shard.class_start, shard.num_classes)
    more = {} if training is None else training.arguments()

    def check() -> None:
        fault()
        shared = target
        if local_target and target is not None:
            ignored = (target == -1) | (target == given["ignore_index"])
            shared = torch.where(ignored, given["ignore_index"], target + shard.class_start)
        op = torch.ops.gkd._check_sparse_shard
        call_op(name, op, student, *group, shared, *where, **given, **more)

    with ranks_kept(name):
        # A rank that raised alone would leave the others waiting: see check_agreement.
        if not torch.compiler.is_compiling():
            # Of the teacher's logits it looks at shape and dtype.
            shadow = group.logits.new_empty((1,) * student.dim()).expand(student.shape)
            tensors = (student, shadow, target)
            settings = {**given, "secondary_weight": 0.0}
            check_agreement(name, shard, tensors, settings, check, validate, local_target, training)
        fault()
        if plain(name, "local_target", local_target, FLAG) and target is not None:
            target = global_target(target, student.shape[-1], shard, given["ignore_index"])
        ops, ranks = torch.ops.gkd, (dist.get_world_size(shard.group), shard.group.group_name)
        op = ops.sharded_sparse_loss if training is None else ops.sharded_training_sparse_loss
        return call_op(name, op, student, *group, target, *where, *ranks, **given, **more)
