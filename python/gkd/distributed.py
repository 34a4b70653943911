"""gkd.loss over logits whose classes are split over ranks (partial FC, tensor parallel).

The only file that talks to torch.distributed; the collectives inside the loss are in
``csrc/sharded.cpp``. Names that end in ``_shard`` are one rank's part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._agreement import Agreement
from ._chunks import Shard
from .functional import DEFAULT_THRESHOLD
from .linear import run_linear

_NAME = "gkd::sharded_loss"


def loss(
    student_shard: Tensor,
    teacher_shard: Tensor,
    target: Tensor | None = None,
    *,
    class_start: int | None = None,
    num_classes: int | None = None,
    group: dist.ProcessGroup | None = None,
    local_target: bool = False,
    validate: bool | None = None,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    primary_weight: float = 8.0,
    binary_weight: float = 1.0,
    secondary_weight: float = 0.0,
    coupled: bool = False,
    rank_by: str = "teacher",
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """`gkd.loss` of [B, num_classes] logits, of which this rank holds a slice of the classes.

    Every rank of ``group`` calls it with the same rows and settings, and gets the same loss; the
    gradient is that of the rank's own slice, complete and without a factor of the world size.

    7 collectives for float32 logits, 6 for 16-bit and 10 for float64 ones, whatever the data, and
    none in the backward; 57 KB a row (docs/scaling.md). An all-reduce more with ``local_target``,
    an all-gather of 448 bytes more in a call that validates.

    Args:
        student_shard: [B, C_r], float16, bfloat16, float32 or float64; C_r may be 0, and differ
            between ranks. Or a DTensor with Shard(1), which has ``group``, ``class_start`` and
            ``num_classes`` in it.
        teacher_shard: the same shape, device and classes; must not require grad.
        target: int64 or int32 [B], the same on every rank, counted from class 0 of the whole row.
        class_start: the slice's first class.
        num_classes: of the whole row, at most 2^31 - 1.
        group: the ranks that hold the slices, in any order; the default group where None.
        local_target: targets are in partial FC's convention instead: counted from the slice's first
            class, and -1 for another rank's class. Rows that no rank claims are ignored.
        validate: compare shapes, settings, slices and targets between ranks first, which waits for
            the device, and raise the same error on all of them. None: in a group's first call, and
            in all with TORCH_DISTRIBUTED_DEBUG. Without it, a row with a target out of bounds has
            loss and gradient NaN, and ranks that disagree are not found out.
        threshold: as in `gkd.loss`.
        group_size: as in `gkd.loss`.
        temperature: as in `gkd.loss`.
        primary_weight: as in `gkd.loss`.
        binary_weight: as in `gkd.loss`.
        secondary_weight: as in `gkd.loss`.
        coupled: as in `gkd.loss`.
        rank_by: as in `gkd.loss`.
        reduction: as in `gkd.loss`.
        ignore_index: as in `gkd.loss`.

    Returns:
        A scalar, or [B] with reduction "none"; float32, or float64 where either input is.

    Raises:
        ValueError: as in `gkd.loss`; slices that do not make up the row, ranks that disagree.
        TypeError: a dtype that is not supported, a DTensor beside a plain tensor.
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
    # Both of threshold and group_size are found out by all ranks together.
    settings: dict[str, Any] = {
        "threshold": DEFAULT_THRESHOLD if threshold is None else threshold,
        "group_size": group_size,
        "temperature": temperature,
        "primary_weight": primary_weight,
        "binary_weight": binary_weight,
        "secondary_weight": secondary_weight,
        "coupled": coupled,
        "rank_by": rank_by,
        "reduction": reduction,
        "ignore_index": ignore_index,
    }
    if is_dtensor(student_shard) or is_dtensor(teacher_shard):
        given = (group, class_start, num_classes)
        student_shard, teacher_shard, group, class_start, num_classes = _unwrap(
            student_shard, teacher_shard, *given
        )
        target = target.full_tensor() if is_dtensor(target) else target  # type: ignore[union-attr]
    if class_start is None or num_classes is None:
        raise ValueError(f"{_NAME}: class_start and num_classes are needed beside plain tensors")
    group = _members(group, _NAME)
    settings |= {"class_start": class_start, "num_classes": num_classes}
    try:
        if not torch.compiler.is_compiling():
            agreement = Agreement(_NAME, group, student_shard, teacher_shard, target, settings)
            agreement.check(validate, local_target)
        if local_target and target is not None:
            target = _global_target(target, student_shard.shape[1], settings, group)
        value: Tensor = torch.ops.gkd.sharded_loss(
            student_shard,
            teacher_shard,
            target,
            dist.get_world_size(group),
            group.group_name,
            **settings,
        )
    except RuntimeError as error:
        if str(error).startswith("gkd::"):
            raise
        raise RuntimeError(f"{_NAME}: the ranks lost one another: {error}") from error
    return value


def linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    class_start: int,
    num_classes: int,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    primary_weight: float = 8.0,
    binary_weight: float = 1.0,
    secondary_weight: float = 0.0,
    coupled: bool = False,
    rank_by: str = "teacher",
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """`gkd.linear_loss` where every rank of a group holds the weights of some of the classes.

    Features, target and every setting are the same on all ranks, as is the loss. The gradient of
    the features, too, is that of the whole, by one all-reduce of [B, D_s]; the weight's is this
    rank's own. The ranks compare their calls in a group's first one.

    Args:
        student_features: [B, D_s], the same on every rank.
        student_weight: [C_r, D_s], this rank's run of the classes.
        teacher_features: [B, D_t], the same on every rank.
        teacher_weight: [C_r, D_t], of the same classes.
        target: [B], counted from class 0 of the whole.
        class_start: the first class that this rank holds.
        num_classes: of all ranks together.
        group: the process group; the default one unless given.
        scale: as in `gkd.linear_loss`.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`, and the same on every rank.
        threshold: as in `gkd.loss`.
        group_size: as in `gkd.loss`.
        temperature: as in `gkd.loss`.
        primary_weight: as in `gkd.loss`.
        binary_weight: as in `gkd.loss`.
        secondary_weight: as in `gkd.loss`.
        coupled: as in `gkd.loss`.
        rank_by: as in `gkd.loss`.
        reduction: as in `gkd.loss`.
        ignore_index: as in `gkd.loss`.

    Returns:
        As `gkd.linear_loss`, the same on every rank.

    Raises:
        ValueError: as in `gkd.linear_loss` and `gkd.distributed.loss`, as are the other errors.
    """
    members = _members(group, "gkd::linear_loss")
    return run_linear(
        (student_features, student_weight, teacher_features, teacher_weight),
        target,
        scale,
        normalize,
        chunk_rows,
        reduction,
        {
            "threshold": DEFAULT_THRESHOLD if threshold is None else threshold,
            "group_size": group_size,
            "temperature": temperature,
            "primary_weight": primary_weight,
            "binary_weight": binary_weight,
            "secondary_weight": secondary_weight,
            "coupled": coupled,
            "rank_by": rank_by,
            "ignore_index": ignore_index,
        },
        Shard(members, class_start, num_classes),
    )


def _members(group: dist.ProcessGroup | None, name: str) -> dist.ProcessGroup:
    group = group if group is not None else dist.group.WORLD
    if group is None:
        raise RuntimeError(f"{name}: torch.distributed.init_process_group has not been called")
    return group


def _global_target(
    target: Tensor, classes: int, settings: dict[str, Any], group: dist.ProcessGroup
) -> Tensor:
    """Partial FC's targets as classes of the whole row, by one maximum over ranks."""
    nowhere = -1
    elsewhere = (target == -1) | (target == settings["ignore_index"])
    # Out of bounds on one rank: out of bounds for all, whatever the others claim.
    strange = (target < 0) | (target >= classes)
    mine = torch.where(strange, settings["num_classes"], target.long() + settings["class_start"])
    mine = torch.where(elsewhere, nowhere, mine)
    ops = torch.ops._c10d_functional
    whole: Tensor = ops.wait_tensor(ops.all_reduce(mine, "max", group.group_name))
    return torch.where(whole == nowhere, settings["ignore_index"], whole)


def is_dtensor(value: object) -> bool:
    """Without importing torch.distributed.tensor where nobody has."""
    return isinstance(value, Tensor) and type(value).__name__ == "DTensor"


def _unwrap(
    student: Any, teacher: Any, group: object, class_start: object, num_classes: object
) -> tuple[Tensor, Tensor, dist.ProcessGroup, int, int]:
    """A DTensor's local part and what it says of the classes."""
    if not (is_dtensor(student) and is_dtensor(teacher)):
        raise TypeError(f"{_NAME}: student and teacher must both be DTensors or both plain tensors")
    if group is not None or class_start is not None or num_classes is not None:
        raise ValueError(f"{_NAME}: group, class_start and num_classes are the DTensor's own")
    mesh, placements = student.device_mesh, student.placements
    if teacher.device_mesh != mesh or teacher.placements != placements:
        raise ValueError(
            f"{_NAME}: student and teacher must be placed alike, got {placements} and "
            f"{teacher.placements}"
        )
    split = [k for k, place in enumerate(placements) if place.is_shard(1)]
    if len(split) != 1 or not all(p.is_replicate() or p.is_shard(1) for p in placements):
        raise ValueError(
            f"{_NAME}: DTensor logits must be Shard(1) on one mesh dimension and Replicate() on "
            f"the others, got {placements}"
        )
    classes = student.shape[1]
    # Shard's slices are those of torch.chunk.
    slice_size = -(-classes // mesh.size(split[0]))
    start = min(mesh.get_local_rank(split[0]) * slice_size, classes)
    return student.to_local(), teacher.to_local(), mesh.get_group(split[0]), start, classes
