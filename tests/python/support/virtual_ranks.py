"""The stages of a class-sharded call in one process: every rank's part, and reductions by hand.

What torch.distributed does between stages is a maximum, a sum or a concatenation; here it is done
on a list of tensors, so that a backend's stages are tested without a second process or device.
"""

import torch

from gkd._settings import DEFAULTS

ops = torch.ops.gkd
#: Significand bits, and bits of sign and exponent in float and in double arithmetic.
FRACTION = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}


def num_passes(ranking, wide):
    """Radix passes that a search needs: 11 bits each of a ranking logit's key."""
    return -(-(FRACTION[ranking] + (12 if wide else 9)) // 11)


def bounds(sizes):
    """Class boundaries of shards of these sizes."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def sharded(student, teacher, target, sizes, need_grad=True, **settings):
    """(loss, [B, C] gradient as stored, grad_scale, cut) of a call whose classes are split."""
    return sharded_with_parts(student, teacher, target, sizes, need_grad, **settings)[:4]


def sharded_with_parts(student, teacher, target, sizes, need_grad=True, **settings):
    """The same, and cross-entropy and distillation; settings: those of training_loss too."""
    assert sum(sizes) == student.shape[1]
    settings = {**DEFAULTS, **settings}
    classes = student.shape[1]
    parts = [(student[:, a:b], teacher[:, a:b], target, a, classes) for a, b in bounds(sizes)]

    def each(stage, *told, **other):
        return [stage(*part, *told, **{**settings, **other}) for part in parts]

    def find_cut(**grouping):
        cut = constant_cut(student, teacher, grouping)
        if cut is not None:
            return cut
        extremes = torch.stack(each(ops._shard_extremes)).amax(0)
        counts = torch.stack(each(ops._shard_counts, extremes, **grouping))
        counts = counts.sum(0, dtype=torch.int32)
        search = torch.empty(0, dtype=torch.int64, device=student.device)
        ranking = student if settings["rank_by"] == "student" else teacher
        wide = torch.float64 in (student.dtype, teacher.dtype)
        dtype = ranking.dtype
        if settings.get("distill_margin"):  # a margin may lie between two numbers of the logits'
            dtype = torch.float64 if wide else torch.float32
        for _ in range(num_passes(dtype, wide)):
            told = (extremes, counts, search)
            histogram = torch.stack(each(ops._shard_histogram, *told, **grouping)).sum(0)
            told = (extremes, histogram, search)
            search, cut = each(ops._shard_refine, *told, **grouping)[0]
        return cut

    threshold, size = settings["threshold"], settings["group_size"]
    if threshold is None or size is None:
        cut = find_cut(threshold=threshold, group_size=size)
    else:  # the shorter of the two groups
        by_mass = find_cut(threshold=threshold, group_size=None)
        cut = torch.maximum(by_mass, find_cut(threshold=None, group_size=size))
    moments = torch.stack(each(ops._shard_moments, cut))
    emitted = each(ops._shard_gradient, cut, moments, need_grad)
    kl = torch.stack([k for _, k in emitted])
    results = each(ops._shard_loss, moments, kl)
    for others in results[1:]:
        for value, first in zip(others, results[0], strict=True):
            assert value.equal(first) or value.isnan().any()
    gradient = torch.cat([g for g, _ in emitted], dim=1) if need_grad else None
    loss, grad_scale, *parts = results[0]
    return loss, gradient, grad_scale, cut, *parts


def constant_cut(student, teacher, settings):
    size = settings["group_size"]
    if size == 0:
        value = float("inf")
    elif size is not None and size >= student.shape[1]:
        value = -float("inf")
    elif size is None and settings["threshold"] == 1:
        wide = torch.float64 in (student.dtype, teacher.dtype)
        value = torch.finfo(torch.float64 if wide else torch.float32).min
    else:
        return None
    return torch.full(student.shape[:1], value, dtype=torch.float64, device=student.device)
