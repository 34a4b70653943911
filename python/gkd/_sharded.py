"""What the functions of gkd.distributed have in common: arguments compared between ranks, then the
operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._agreement import check_agreement
from ._linear_check import Call, Factors, check_call
from ._settings import FLAG, call_op, is_dtensor, plain
from ._shard_part import Shard, part_of, replicated
from ._training import Training
from .linear import run_linear
from .teacher import TeacherGroup

_NETWORKS = ("student", "teacher")


@contextmanager
def ranks_kept(name: str) -> Iterator[None]:
    """Says what an error of a collective means."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith(name):
            raise
        raise RuntimeError(f"{name}: the ranks lost one another: {error}") from error


def run_sharded(
    name: str,
    logits: tuple[Tensor, Tensor],
    target: Tensor | None,
    shard: Shard,
    given: dict[str, Any],
    training: Training | None,
    fault: Callable[[], None],
    validate: bool | None,
    local_target: bool,
) -> Any:
    """The operator behind `loss` and, with ``training``, `training_loss`."""
    target = target.full_tensor() if is_dtensor(target) else target  # type: ignore[union-attr]
    with ranks_kept(name):
        # A rank that raised alone would leave the others waiting: see check_agreement.
        if not torch.compiler.is_compiling():
            check_agreement(
                name, shard, (*logits, target), given, fault, validate, local_target, training
            )
        fault()
        if plain(name, "local_target", local_target, FLAG) and target is not None:
            target = global_target(target, logits[0].shape[-1], shard, given["ignore_index"])
        where = (shard.class_start, shard.num_classes)
        ranks = (dist.get_world_size(shard.group), shard.group.group_name)
        op, more = torch.ops.gkd.sharded_loss, {}
        if training is not None:
            op, more = torch.ops.gkd.sharded_training_loss, training.arguments()
        return call_op(name, op, *logits, target, *where, *ranks, **given, **more)


def run_sharded_linear(
    features: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    target: Tensor | None,
    where: tuple[dist.ProcessGroup | None, int | None, int | None],
    reduce_features_grad: bool,
    call: Call,
    fault: Callable[[], None],
    training: Training | None = None,
    group: TeacherGroup | None = None,
) -> tuple[Tensor, ...]:
    """What the linear losses do with their calls.

    features, weights: the student's and the teacher's; with ``group`` the student's alone.
    """
    name = call.name
    (student_weight, teacher_weight), shard = part_of(name, (weights[0], weights[-1]), 0, *where)
    whole = [replicated(name, which, x) for which, x in zip(_NETWORKS, features, strict=False)]
    of_teacher = (whole[-1], teacher_weight) if group is None else tuple(group)
    tensors = (whole[0], student_weight, *of_teacher)
    summed = plain(name, "reduce_features_grad", reduce_features_grad, FLAG)
    factors: Factors = (None, None)
    if training is not None:
        factors = (training.margins, training.distillation_factor)
    if not torch.compiler.is_compiling():
        # What the logits would be, without their memory.
        shape = (*whole[0].shape[:-1], *student_weight.shape[:1])
        dtypes = (whole[0], whole[-1] if group is None else group.logits)
        student, teacher = (x.new_empty((1,) * len(shape)).expand(shape) for x in dtypes)

        def check() -> None:
            fault()
            check_call(call, tensors, target, shard.num_classes, factors)
            if group is not None:
                given = {**call.settings, **(training.arguments() if training else {})}
                place = (shard.class_start, shard.num_classes)
                op = torch.ops.gkd._check_sparse_shard
                call_op(name, op, student, *group, target, *place, **given)

        more = {
            "scale": call.scale,
            "normalize": call.normalize,
            "chunk_rows": call.chunk_rows,
            "reduce_features_grad": summed,
        }
        settings = {**call.settings, **({"secondary_weight": 0.0} if group else {})}
        given = (student, teacher, target)
        check_agreement(name, shard, given, settings, check, training=training, more=more)
    fault()
    shard = shard._replace(reduce_features_grad=summed)
    return run_linear(tensors, target, call, shard, factors)


def attempt(make: Callable[[], Any], otherwise: Any) -> tuple[Any, Callable[[], None]]:
    """What ``make`` returns, or ``otherwise``; and a function that raises what ``make`` raised."""
    try:
        return make(), lambda: None
    except (TypeError, ValueError) as error:
        kept = error

    def fault() -> None:
        raise kept

    return otherwise, fault


def global_target(target: Tensor, classes: int, shard: Shard, ignore_index: int) -> Tensor:
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
