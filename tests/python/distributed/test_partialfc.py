"""examples/partialfc.py on the real PartialFC_V2, against one step in plain PyTorch, unsharded.

ARCFACE_TORCH names the folder recognition/arcface_torch of a checkout of deepinsight/insightface.
The real file calls .cuda() on every tensor, which here gives the tensor itself back.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gkd.convert
import ranks
from oracle import error

ROOT = Path(__file__).resolve().parents[3]
BESIDE = ROOT.parent / "insightface" / "recognition" / "arcface_torch"
CHECKOUT = Path(os.environ.get("ARCFACE_TORCH", BESIDE))
pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "partial_fc_v2.py").is_file(),
    reason=f"no partial_fc_v2.py in {CHECKOUT}: ARCFACE_TORCH names the folder arcface_torch",
)

RANKS, ROWS, CLASSES, DIMENSION, TEACHER_DIMENSION = 2, 12, 151, 16, 24
SCALE, TEMPERATURE = 64.0, 4.0
SETTINGS = {"rank_by": "student", "group_size": 9, "distillation_weight": 0.5}
#: margin, sample rate, further options, whether all labels are of rank 0's classes.
CASES = {
    "cosface": ("cosface", 1.0, {}, False),
    "arcface": ("arcface", 1.0, {}, False),
    "authors": ("cosface", 1.0, {"margin": 0.4, "distill_margin": True}, False),
    "sampled": ("cosface", 0.3, {}, False),
    "corrected": ("arcface", 0.3, {"correct_sampling": True}, False),
    # Rank 0 has more positives than int(0.3 * 76): its sample is the positives, of another size.
    "more positives than the sample": ("cosface", 0.3, {"correct_sampling": True}, True),
}


def batch(dtype, crowded):
    """Features near their class, so that no probability is at PartialFC's clamp of 1e-30."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, size in (("student", DIMENSION), ("teacher", TEACHER_DIMENSION)):
        weight = torch.randn(CLASSES, size, generator=generator, dtype=torch.float64)
        noise = torch.randn(ROWS * RANKS, size, generator=generator, dtype=torch.float64)
        made[name] = weight, noise
    classes = 76 if crowded else CLASSES
    labels = torch.randperm(classes, generator=generator)[: ROWS * RANKS]
    features = {k: w[labels] + 0.6 * noise for k, (w, noise) in made.items()}
    weights = {k: w for k, (w, _) in made.items()}
    # Numbers that float32 has too: one oracle for both dtypes.
    weights, features = (
        {k: x.float().to(dtype) for k, x in y.items()} for y in (weights, features)
    )
    return weights, features, labels


def margins(name):
    from losses import CombinedMarginLoss

    return CombinedMarginLoss(SCALE, 1.0, *{"cosface": (0.0, 0.4), "arcface": (0.5, 0.0)}[name])


def on_real_code(rank, world_size):
    """Each case in both dtypes: what a rank has after a step, per case."""
    sys.path.insert(0, str(CHECKOUT))
    torch.Tensor.cuda = lambda self: self
    from examples.partialfc import GKDPartialFC

    found = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)  # PartialFC's buffers are of the default dtype
        for case, (margin, rate, options, crowded) in CASES.items():
            weights, features, labels = batch(dtype, crowded)
            size = CLASSES // world_size
            start = size * rank + min(rank, CLASSES % world_size)
            mine = slice(start, start + size + (rank < CLASSES % world_size))
            head = GKDPartialFC(
                margins(margin), DIMENSION, CLASSES, rate,
                teacher_weight=weights["teacher"][mine], **SETTINGS, **options,
            )  # fmt: skip
            head.weight.data.copy_(weights["student"][mine])
            rows = slice(ROWS * rank, ROWS * (rank + 1))
            local = features["student"][rows].clone().requires_grad_()
            steps = []
            for _ in range(2 if rate < 1 else 1):  # another sample, and another size of it
                local.grad = head.weight.grad = None
                value = head(local, labels[rows].clone(), features["teacher"][rows])
                value.total.backward()
                index = head.weight_index if rate < 1 else torch.arange(head.num_local)
                # What DDP does with the backbone's gradient, of which this one is the features'.
                steps.append(
                    {
                        "loss": torch.stack([x.detach() for x in value]),
                        "features": local.grad / world_size,
                        "weight": head.weight.grad,
                        "classes": index + start,
                        "state": {k: v.clone() for k, v in head.state_dict().items()},
                    }
                )
            found[case, dtype] = steps
    found["linear"] = linear_loss_of_gathered(rank, world_size)
    return found


def linear_loss_of_gathered(rank, world_size):
    """The gradient of the features by way of PartialFC's own AllGather, for both ways to sum it."""
    from partial_fc_v2 import AllGather

    torch.set_default_dtype(torch.float64)
    weights, features, labels = batch(torch.float64, False)
    first, last = (CLASSES * r // world_size for r in (rank, rank + 1))
    gradients = []
    for reduce in (False, True):
        local = features["student"].split(ROWS)[rank].clone().requires_grad_()
        places = [torch.zeros_like(local) for _ in range(world_size)]
        value = gkd.distributed.training_linear_loss(
            torch.cat(AllGather(local, *places)), weights["student"][first:last],
            features["teacher"], weights["teacher"][first:last], labels, margin=0.4,
            class_start=first, num_classes=CLASSES, reduce_features_grad=reduce,
        )  # fmt: skip
        value.total.backward()
        gradients.append(local.grad / world_size)
    return gradients


@pytest.fixture(scope="module")
def found():
    return ranks.run(RANKS, on_real_code)


def plain_step(case, shards, dtype=torch.float64):
    """The same step: [B, C] logits of the sampled classes, PyTorch and gkd.reference."""
    margin, _, options, crowded = CASES[case]
    weights, features, labels = batch(dtype, crowded)
    weight = weights["student"].clone().requires_grad_()
    feature = features["student"].clone().requires_grad_()
    classes = torch.cat(shards)
    target = torch.searchsorted(classes, labels)
    assert (classes[target] == labels).all()
    cosines = F.normalize(feature) @ F.normalize(weight)[classes].T
    teacher = F.normalize(features["teacher"]) @ F.normalize(weights["teacher"])[classes].T
    own = F.one_hot(target, len(classes)).bool()
    if margin == "cosface":
        moved = cosines - 0.4
    else:  # a constant shift: arcface_torch's margin has no derivative
        moved = cosines + (torch.cos(cosines.acos() + 0.5) - cosines).detach()
    cross_entropy = F.cross_entropy(SCALE * torch.where(own, moved, cosines), target)
    student, teacher = SCALE * cosines, SCALE * teacher
    if "margin" in options:
        student, teacher = (
            x - SCALE * options["margin"] * own.to(dtype) for x in (student, teacher)
        )
    if "correct_sampling" in options:
        whole = torch.tensor([CLASSES - CLASSES // RANKS, CLASSES // RANKS])
        for r, shard in enumerate(shards):
            positive = torch.isin(shard, labels)
            if positive.all():
                continue
            rate = (~positive).sum().double() / (whole[r] - positive.sum())
            columns = torch.isin(classes, shard[~positive])
            student, teacher = (x - TEMPERATURE * rate.log() * columns for x in (student, teacher))
    plain = {k: v for k, v in SETTINGS.items() if k != "distillation_weight"}
    distillation = gkd.reference.loss(student, teacher, target, temperature=TEMPERATURE, **plain)
    total = cross_entropy + SETTINGS["distillation_weight"] * distillation
    total.backward()
    return torch.stack([total, cross_entropy, distillation]).detach(), feature.grad, weight.grad


@pytest.mark.parametrize("case", CASES)
def test_equals_an_unsharded_step(case, found):
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for steps in zip(*(rank[case, dtype] for rank in found), strict=True):
            shards = [x["classes"] for x in steps]
            exact = plain_step(case, shards)
            # Cosines that are rounded, times 64, are off in plain PyTorch too.
            eager = [
                error(x, y) for x, y in zip(plain_step(case, shards, dtype), exact, strict=True)
            ]
            for step in steps:
                assert error(step["loss"], exact[0]) <= bound + eager[0]
            for k, name in ((1, "features"), (2, "weight")):
                whole = torch.cat([x[name] for x in steps])
                assert error(whole, exact[k]) <= bound + eager[k]


def test_samples_differ_by_rank_and_step(found):
    case = "more positives than the sample"
    sizes = [len(rank[case, torch.float64][0]["classes"]) for rank in found]
    assert sizes[0] == ROWS * RANKS and sizes[1] == int(0.3 * (CLASSES // RANKS))
    first, second = (step["classes"] for step in found[1]["sampled", torch.float64])
    assert not torch.equal(first, second)


def test_checkpoints_are_partialfcs_own(found, tmp_path):
    """The teacher's weight is not in them: arcface_torch resumes with either class."""
    shards = [rank["sampled", torch.float32][0]["state"] for rank in found]
    for rank, state in enumerate(shards):
        assert list(state) == ["weight"]
        torch.save({"state_dict_softmax_fc": state}, tmp_path / f"checkpoint_gpu_{rank}.pt")
    weights, _, _ = batch(torch.float32, False)
    assert torch.equal(gkd.convert.read(tmp_path, CLASSES).head, weights["student"])


def test_linear_loss_leaves_the_sum_to_the_all_gather(found):
    weights, features, labels = batch(torch.float64, False)
    whole = features["student"].clone().requires_grad_()
    gkd.training_linear_loss(
        whole, weights["student"], features["teacher"], weights["teacher"], labels, margin=0.4
    ).total.backward()
    right, wrong = (torch.cat([rank["linear"][k] for rank in found]) for k in (0, 1))
    assert error(right, whole.grad) <= 1e-12
    assert error(wrong, RANKS * whole.grad) <= 1e-12
