"""Where a rank's shard of the classes lies: from numbers, or from DTensors that know."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from ._settings import INTEGER, is_dtensor, plain


class Shard(NamedTuple):
    """Which classes this rank holds."""

    group: dist.ProcessGroup
    class_start: int
    num_classes: int  #: of all ranks together
    reduce_features_grad: bool = True  #: sum the gradient of a head's features over the ranks


def part_of(
    name: str,
    pair: tuple[Tensor, Tensor],
    dim: int,
    group: dist.ProcessGroup | None,
    class_start: int | None,
    num_classes: int | None,
) -> tuple[tuple[Tensor, Tensor], Shard]:
    """Student's and teacher's shards along ``dim``, from tensors and numbers or from DTensors."""
    student, teacher = pair
    if is_dtensor(student) or is_dtensor(teacher):
        if any(x is not None for x in (group, class_start, num_classes)):
            raise ValueError(
                f"{name}: process_group, class_start and num_classes are the DTensor's own"
            )
        return _unwrap(name, student, teacher, dim)
    if class_start is None or num_classes is None:
        raise ValueError(f"{name}: class_start and num_classes are needed with plain tensors")
    group = group if group is not None else dist.group.WORLD
    if group is None:
        raise RuntimeError(f"{name}: torch.distributed.init_process_group has not been called")
    start = plain(name, "class_start", class_start, INTEGER)
    return pair, Shard(group, start, plain(name, "num_classes", num_classes, INTEGER))


def _unwrap(name: str, student: Any, teacher: Any, dim: int) -> tuple[tuple[Tensor, Tensor], Shard]:
    """DTensors' local parts and what they say of the classes."""
    if not (is_dtensor(student) and is_dtensor(teacher)):
        raise TypeError(f"{name}: student and teacher must both be DTensors or both plain tensors")
    mesh, placements = student.device_mesh, student.placements
    if teacher.device_mesh != mesh or teacher.placements != placements:
        raise ValueError(
            f"{name}: student and teacher must be placed alike, got {placements} and "
            f"{teacher.placements}"
        )
    sharded = [k for k, place in enumerate(placements) if place.is_shard(dim)]
    if len(sharded) != 1 or not all(p.is_replicate() or p.is_shard(dim) for p in placements):
        raise ValueError(
            f"{name}: DTensors must be Shard({dim}) on one mesh dimension and Replicate() on "
            f"the others, got {placements}"
        )
    classes = student.shape[dim]
    # DTensor divides as torch.chunk does.
    shard_classes = -(-classes // mesh.size(sharded[0]))
    start = min(mesh.get_local_rank(sharded[0]) * shard_classes, classes)
    local = (student.to_local(), teacher.to_local())
    return local, Shard(mesh.get_group(sharded[0]), start, classes)


def replicated(name: str, which: str, features: Any) -> Any:
    """Features as a plain tensor that every rank has whole."""
    if not is_dtensor(features):
        return features
    if not all(place.is_replicate() for place in features.placements):
        raise ValueError(
            f"{name}: {which}_features must be the same on every rank, a DTensor Replicate(), "
            f"got {features.placements}"
        )
    return features.to_local()
