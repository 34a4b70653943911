"""The stages of a class-sharded call in one process: every rank's part, and reductions by hand.

What torch.distributed does between stages is a maximum, a sum or a concatenation; here it is done
on a list of tensors, so that a backend's stages are tested without a second process or device.
"""

import torch

ops = torch.ops.gkd
DEFAULTS = {
    "threshold": None,
    "group_size": None,
    "temperature": 4.0,
    "primary_weight": 8.0,
    "binary_weight": 1.0,
    "secondary_weight": 0.0,
    "coupled": False,
    "rank_by": "teacher",
    "reduction": "mean",
    "ignore_index": -100,
}
#: Significand bits, and bits of sign and exponent in float and in double arithmetic.
FRACTION = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}


def spreads(ranking, wide):
    """Spreads that a search needs: 11 bits each of a ranking logit's key."""
    return -(-(FRACTION[ranking] + (12 if wide else 9)) // 11)


def bounds(sizes):
    """Class boundaries of shards of these sizes."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def sharded(student, teacher, target, sizes, need_grad=True, **settings):
    """(loss, [B, C] gradient as stored, grad_scale, cut) of a call whose classes are split."""
    assert sum(sizes) == student.shape[1]
    settings = {**DEFAULTS, **settings}
    classes = student.shape[1]
    parts = [(student[:, a:b], teacher[:, a:b], target, a, classes) for a, b in bounds(sizes)]

    def each(stage, *told):
        return [stage(*part, *told, **settings) for part in parts]

    cut = constant_cut(student, teacher, settings)
    if cut is None:
        extremes = torch.stack(each(ops._shard_extremes)).amax(0)
        counts = torch.stack(each(ops._shard_counts, extremes)).sum(0, dtype=torch.int32)
        search = torch.empty(0, dtype=torch.int64, device=student.device)
        ranking = student if settings["rank_by"] == "student" else teacher
        wide = torch.float64 in (student.dtype, teacher.dtype)
        for _ in range(spreads(ranking.dtype, wide)):
            amounts = torch.stack(each(ops._shard_histogram, extremes, counts, search)).sum(0)
            search, cut = each(ops._shard_refine, extremes, amounts, search)[0]
    moments = torch.stack(each(ops._shard_moments, cut))
    emitted = each(ops._shard_gradient, cut, moments, need_grad)
    kl = torch.stack([k for _, k in emitted])
    results = each(ops._shard_loss, moments, kl)
    for loss, grad_scale in results[1:]:
        assert loss.equal(results[0][0]) or loss.isnan().any()
        assert grad_scale.equal(results[0][1])
    gradient = torch.cat([g for g, _ in emitted], dim=1) if need_grad else None
    return *results[0][:1], gradient, results[0][1], cut


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
