"""gkd.sparse_loss of a grouped teacher against gkd.loss of its logits, in float64."""

import pytest
import torch

import gkd
from cases import targets
from oracle import error
from sparse import GROUPINGS, KINDS, on, pair, with_gradient

#: As conftest's Sizes has them, and why.
SHAPES = ((5, 1), (5, 2), (4, 3), (3, 16), (5, 33), (3, 255), (3, 256), (2, 511), (2, 1025))
SHAPES = (*SHAPES, (1, 4099), (1, 8193), (20, 7))
WEIGHTS = {"paper": {}, "coupled": {"coupled": True, "primary_weight": 1.0, "temperature": 1.5}}


def agree(a, b):
    """Within 1e-12. A loss of 1e-8, which is the square of what the masses differ by, has no more
    digits than `rest`, which is about 10: they agree where its square root would."""
    return error(a, b) <= 1e-12 or (a - b).abs().max() <= 1e-15


def grouping_of(settings, how):
    return {**how, **{k: v for k, v in settings.items() if k == "temperature"}}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loss_of_the_whole_teacher(kind, how, weights, reduction):
    """12 shapes, without a target, with one, and with ignored rows."""
    own, settings = GROUPINGS[how], {**WEIGHTS[weights], "reduction": reduction}
    for shape in SHAPES:
        student, teacher = pair(kind, shape)
        for ignored in (None, (), (0,), range(1, 5)):
            target = None if ignored is None else targets(shape)
            for k in ignored or ():
                if k < shape[0]:
                    target[k] = -100
            kept = gkd.teacher_group(teacher, target, **grouping_of(settings, own))
            got, gradient = with_gradient(
                lambda s, kept=kept, target=target: gkd.sparse_loss(s, kept, target, **settings),
                student,
            )
            wanted, slope = with_gradient(
                lambda s, teacher=teacher, target=target: gkd.loss(
                    s, teacher, target, **own, **settings
                ),
                student,
            )
            assert agree(got, wanted) and agree(gradient, slope), shape


@pytest.mark.parametrize("scale", [1.0, 64.0], ids="scale={}".format)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_that_of_the_whole_teacher(kind, how, temperature, scale):
    for shape in ((3, 16), (5, 33), (2, 511), (1, 8193)):
        student, teacher = pair(kind, shape)
        target = targets(shape)
        if kind == "padded":  # a target of -inf has an infinite cross-entropy
            target = target % 2
        target[-1] = -100 if shape[0] > 1 else target[-1]
        margin = torch.linspace(0.0, 0.3, shape[0], dtype=torch.float64)
        given = {"scale": scale, "margin": margin, "distillation_weight": 0.7}
        settings = {"temperature": temperature, "reduction": "none"}
        kept = gkd.teacher_group(teacher, target, temperature=temperature, **GROUPINGS[how])
        got, gradient = with_gradient(
            lambda s, kept=kept, target=target, given=given, settings=settings: (
                gkd.training_sparse_loss(s, kept, target, **given, **settings)
            ),
            student / scale,
        )
        wanted, slope = with_gradient(
            lambda s, teacher=teacher, target=target, given=given, settings=settings: (
                gkd.training_loss(
                    s, teacher / given["scale"], target, **GROUPINGS[how], **given, **settings
                )
            ),
            student / scale,
        )
        for a, b in zip(got, wanted, strict=True):
            assert agree(a, b), shape
        assert agree(gradient, slope), shape


@pytest.mark.parametrize("size", [1, 3, 20])
def test_top_k_and_one_class_for_the_tail(size):
    """coupled, weights 1, T = 1: the KL divergence over K classes and one for all others."""
    student, teacher = pair("flat", (6, 200))
    p, q = teacher.softmax(1), student.softmax(1)
    top = teacher.topk(size).indices

    def with_tail(x):
        inside = x.gather(1, top)
        outside = x.scatter(1, top, 0.0).sum(1, keepdim=True)
        return torch.cat([inside, outside], 1)

    a, b = with_tail(p), with_tail(q)
    wanted = (a * (a.log() - b.log())).sum(1)
    settings = {"temperature": 1.0, "coupled": True, "primary_weight": 1.0, "binary_weight": 1.0}
    kept = gkd.teacher_group(teacher, group_size=size, temperature=1.0)
    assert kept.indices.numel() == 6 * size
    got = gkd.sparse_loss(student, kept, reduction="none", **settings)
    assert error(got, wanted) <= 1e-12
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        gkd.sparse_loss(leaf, kept, reduction="sum", **settings), leaf
    )
    mass = torch.ones_like(q).scatter(1, top, 0.0)
    ratio = a[:, -1:] / b[:, -1:]
    slope = q - torch.where(mass > 0, q * ratio, p)
    assert error(gradient, slope) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ragged_groups_in_any_order_of_rows(device, dtype):
    """Empty, full and other groups side by side, each row as it is alone."""
    student, teacher = pair("flat", (5, 300))
    sizes = (0, 1, 300, 17, 0)
    parts = [gkd.teacher_group(teacher[k : k + 1], group_size=size) for k, size in enumerate(sizes)]
    counts = torch.tensor([0, *(part.indices.numel() for part in parts)])
    kept = gkd.TeacherGroup(
        counts.cumsum(0), *(torch.cat(x) for x in list(zip(*parts, strict=True))[1:])
    )
    there = on(device, kept)
    got, gradient = with_gradient(
        lambda s: gkd.sparse_loss(s, there, reduction="none"), student.to(device, dtype)
    )
    for k, size in enumerate(sizes):
        wanted = gkd.loss(student[k : k + 1].to(dtype), teacher[k : k + 1], group_size=size)
        assert error(got[k], wanted) <= 1e-12
    assert not got[[0, 4]].any() and not gradient[[0, 4]].any()


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 1, 4)], ids=str)
def test_leading_dimensions_are_rows(device, shape):
    student, teacher = pair("flat", (max(1, torch.Size(shape).numel()), 40))
    count = torch.Size(shape).numel()
    student, teacher = (x[:count].reshape(*shape, 40) for x in (student, teacher))
    kept = gkd.teacher_group(teacher, group_size=5)
    assert kept.indptr.shape == (count + 1,) and kept.rest.shape == (count,)
    for reduction in ("none", "mean"):
        got, gradient = with_gradient(
            lambda s, reduction=reduction: gkd.sparse_loss(
                s, on(device, kept), reduction=reduction
            ),
            student.to(device),
        )
        wanted, slope = with_gradient(
            lambda s, reduction=reduction: gkd.loss(s, teacher, group_size=5, reduction=reduction),
            student,
        )
        assert got.shape == wanted.shape and gradient.shape == slope.shape
        if count:
            assert error(got, wanted) <= 1e-12 and error(gradient, slope) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees(kind, how, dtype):
    student, teacher = pair(kind, (6, 130), dtype)
    target = targets((6, 130)) % 40
    target[2] = -100
    student[4, 7] = float("nan")
    kept = gkd.teacher_group(teacher, target, **GROUPINGS[how])
    for settings in ({}, {"coupled": True, "binary_weight": 0.0}, {"reduction": "sum"}):
        rows = {**settings, "reduction": settings.get("reduction", "none")}
        got, gradient = with_gradient(
            lambda s, rows=rows: gkd.sparse_loss(s, kept, target, **rows), student
        )
        wanted, slope = with_gradient(
            lambda s, rows=rows: gkd.reference.sparse_loss(s, kept, target, **rows), student
        )
        # In float32 its differences of logarithms lose the digits of a small Binary-KD.
        bound = 1e-11 if dtype == torch.float64 else 1e-3
        assert got.isnan().equal(wanted.isnan()) and gradient.isnan().equal(slope.isnan())
        assert error(got.nan_to_num(), wanted.nan_to_num()) <= bound
        assert error(gradient.nan_to_num(), slope.nan_to_num()) <= bound


@pytest.mark.parametrize("head", [{}, {"scale": 8.0, "margin": 0.2, "distillation_weight": 0.5}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_reference_of_training(head, reduction):
    student, teacher = pair("peaked", (5, 40))
    target = targets((5, 40))
    target[2] = -100
    kept = gkd.teacher_group(teacher, target, group_size=7)
    student = student / head.get("scale", 1.0)
    settings = {**head, "reduction": reduction, "coupled": True, "cross_entropy_weight": 0.3}
    found, wanted = (
        with_gradient(lambda s, call=call: call(s, kept, target, **settings), student)
        for call in (gkd.training_sparse_loss, gkd.reference.training_sparse_loss)
    )
    for a, b in zip(found[0], wanted[0], strict=True):
        assert error(a, b.detach()) <= 1e-12
    assert error(found[1], wanted[1]) <= 1e-12


def test_the_reference_of_training_is_differentiable_twice():
    student, teacher = pair("flat", (2, 9))
    target = targets((2, 9))
    kept = gkd.teacher_group(teacher, target, group_size=3)
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda s, w: (
            gkd.reference.training_sparse_loss(
                s, kept, target, margin=0.2, distillation_weight=w
            ).total
        ),
        (student.requires_grad_(), weight),
    )
