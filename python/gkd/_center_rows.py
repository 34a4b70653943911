"""Rows of embeddings and labels: checked, and those of all ranks; errors that every rank raises."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rows(
    name: str, embeddings: object, labels: object, sums: Tensor, num_classes: int
) -> Exception | None:
    """What is wrong with them, not raised: other ranks may be waiting."""
    for key, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            return TypeError(f"{name}: {key} must be a Tensor, got {type(value).__name__}")
    assert isinstance(embeddings, Tensor) and isinstance(labels, Tensor)
    if embeddings.dtype not in _DTYPES:
        return TypeError(f"{name}: unsupported dtype {embeddings.dtype} of embeddings")
    if labels.dtype not in (torch.int64, torch.int32):
        return TypeError(f"{name}: labels must be int64 or int32, got {labels.dtype}")
    dimension = sums.shape[1]
    if embeddings.dim() == 0 or embeddings.shape[-1] != dimension:
        shape = list(embeddings.shape)
        return ValueError(f"{name}: expected embeddings of [..., {dimension}], got {shape}")
    if labels.shape != embeddings.shape[:-1]:
        return ValueError(
            f"{name}: embeddings {list(embeddings.shape)} need labels of "
            f"{list(embeddings.shape[:-1])}, got {list(labels.shape)}"
        )
    for value in (embeddings, labels):
        if value.device != sums.device:
            return RuntimeError(
                f"{name}: all tensors must be on {sums.device}, got one on {value.device}"
            )
    rows = labels.flatten()
    wrong = ((rows < 0) | (rows >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        return IndexError(
            f"{name}: label {int(rows[row])} of row {row} is not in [0, {num_classes})"
        )
    return None


def gathered(
    name: str,
    embeddings: Tensor,
    labels: Tensor,
    sums: Tensor,
    fault: Exception | None,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, [N, D] and [N], in the order of the ranks; a fault on all of them."""
    # -1: a rank that raised alone would leave the others waiting.
    own = -1 if fault is not None else labels.numel()
    world_size = dist.get_world_size(group)
    table = [torch.zeros(1, dtype=torch.int64, device=sums.device) for _ in range(world_size)]
    dist.all_gather(table, torch.full_like(table[0], own), group)
    sizes = [int(x) for x in table]
    if fault is not None:
        raise fault
    if min(sizes) < 0:
        raise ValueError(f"{name}: rank {sizes.index(-1)} was given rows that do not fit")
    shape = (max(sizes), sums.shape[1])
    # A collective takes as many rows of every rank, of one dtype.
    padded = torch.zeros(shape, dtype=sums.dtype, device=sums.device)
    padded[:own] = embeddings.flatten(0, -2)
    padded_labels = torch.zeros(shape[0], dtype=torch.int64, device=sums.device)
    padded_labels[:own] = labels.flatten()
    all_rows = [torch.empty_like(padded) for _ in sizes]
    all_labels = [torch.empty_like(padded_labels) for _ in sizes]
    dist.all_gather(all_rows, padded, group)
    dist.all_gather(all_labels, padded_labels, group)
    pairs = list(zip(all_rows, all_labels, sizes, strict=True))
    return torch.cat([x[:n] for x, _, n in pairs]), torch.cat([y[:n] for _, y, n in pairs])


def lowest(missing: Tensor, num_classes: int, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """The first of the classes that are missing on any rank, and how many there are."""
    first = missing.min() if len(missing) else missing.new_tensor(num_classes)
    number = missing.new_tensor(len(missing))
    if group is not None:
        dist.all_reduce(first, dist.ReduceOp.MIN, group)
        dist.all_reduce(number, dist.ReduceOp.SUM, group)
    return int(first), int(number)
