"""Bad input of gkd.sparse_loss: refused by name, or NaN in its row alone."""

import math

import pytest
import torch

import gkd
from oracle import error
from sparse import edited, on, pair

INF, NAN = float("inf"), float("nan")


def case():
    """Four rows of 20 classes, 5 of each in the group."""
    student, teacher = pair("flat", (4, 20), torch.float32)
    return student, gkd.teacher_group(teacher, group_size=5)


def renamed(group, **fields):
    return group._replace(**fields)


VALUES = [
    ({"indices": {7: 20}}, IndexError, r"class 20 is out of bounds for 20 classes \(row 1\)"),
    ({"indices": {5: -1}}, IndexError, r"class -1 is out of bounds for 20 classes \(row 1\)"),
    ({"indices": {19: 2**31 - 1}}, IndexError, r"class 2147483647 is out of bounds .* \(row 3\)"),
    ({"indptr": {0: 1}}, ValueError, "teacher_group.indptr must start at 0, got 1"),
    ({"indptr": {0: -3}}, ValueError, "teacher_group.indptr must start at 0, got -3"),
    ({"indptr": {2: 3}}, ValueError, r"indptr must not descend, got 3 after 5 \(row 1\)"),
    ({"indptr": {2: 99}}, ValueError, r"indptr must not descend, got 15 after 99 \(row 2\)"),
    ({"indptr": {4: 19}}, ValueError, "indptr must end at 20, the number of indices, got 19"),
    ({"indptr": {4: 2**40}}, ValueError, "indptr must end at 20, the number of indices, got 1099"),
]


@pytest.mark.parametrize(("changes", "kind", "text"), VALUES, ids=lambda x: str(x)[:40])
def test_values(changes, kind, text):
    student, kept = case()
    bad = edited(kept, **changes)
    for call, name in calls():
        with pytest.raises(kind, match=f"^{name}: .*{text}"):
            call(student, bad)


def calls():
    target = torch.full((4,), -100)
    return (
        (gkd.sparse_loss, "gkd.sparse_loss"),
        (gkd.GKDSparseLoss(), "gkd.GKDSparseLoss"),
        (lambda s, k: gkd.training_sparse_loss(s, k, target), "gkd.training_sparse_loss"),
    )


@pytest.mark.parametrize("step", [0, -1], ids=["twice", "descending"])
def test_classes_must_ascend(step):
    student, kept = case()
    first = int(kept.indices[12])
    bad = edited(kept, indices={13: first + step})
    text = rf"indices must ascend within a row, got {first + step} after {first} \(row 2\)"
    with pytest.raises(ValueError, match=text):
        gkd.sparse_loss(student, bad)


def test_another_number_of_classes():
    student, kept = case()
    with pytest.raises(IndexError, match="out of bounds for 3 classes"):
        gkd.sparse_loss(student[:, :3].contiguous(), kept)
    five = gkd.teacher_group(torch.arange(8.0).flip(0).repeat(2, 1), group_size=5)
    text = r"rest must be -inf where all 5 classes are in the group, got .* made of more classes"
    with pytest.raises(ValueError, match=text):
        gkd.sparse_loss(torch.zeros(2, 5), five)


def test_target_outside_its_group():
    student, kept = case()
    outside = min(set(range(20)) - set(kept.indices[10:15].tolist()))
    target = kept.indices[::5].long().clone()
    gkd.sparse_loss(student, kept, target)
    target[2] = outside
    text = rf"target {outside} is not in its row's group \(row 2\); pass the targets to gkd.teacher"
    with pytest.raises(IndexError, match=text):
        gkd.sparse_loss(student, kept, target)
    for value in (20, -1):
        target[2] = value
        with pytest.raises(IndexError, match=rf"target {value} is out of bounds .* \(row 2\)"):
            gkd.sparse_loss(student, kept, target.int())
    target[2] = -7
    assert gkd.sparse_loss(student, kept, target, ignore_index=-7).isfinite()


@pytest.mark.parametrize(
    ("field", "place", "value"),
    [
        ("logits", 6, NAN),
        ("logits", 9, INF),
        ("rest", 1, NAN),
        ("rest", 1, INF),
        ("student", (1, 3), NAN),
        ("student", (1, 19), -NAN),
        ("student", (1, 0), INF),
        ("student", 1, -INF),
        ("student", "in group", NAN),
        ("student", "in group", INF),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_row_that_is_not_a_number_is_nan_alone(device, field, place, value, dtype):
    for classes in (20, 700) if device == "cpu" else (700,):
        student, teacher = pair("flat", (3, classes), dtype)
        kept = gkd.teacher_group(teacher, group_size=5)
        target = kept.indices[::5].long()
        bad_student, bad = student.clone(), kept
        if field == "student":
            bad_student[(1, int(kept.indices[7])) if place == "in group" else place] = value
        else:
            bad = edited(kept, **{field: {place: value}})
        there = target.to(device)
        for function in (
            lambda s, k: gkd.sparse_loss(s, k, reduction="none"),
            lambda s, k, t=there: gkd.training_sparse_loss(s, k, t, reduction="none").total,
        ):
            rows = []
            for s, k in ((student, kept), (bad_student, bad)):
                leaf = s.detach().clone().to(device).requires_grad_()
                loss = function(leaf, on(device, k))
                rows.append(on("cpu", loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
            (good, slope), (got, gradient) = rows
            assert got[1].isnan() and gradient[1].isnan().all()
            assert got[[0, 2]].equal(good[[0, 2]]) and gradient[[0, 2]].equal(slope[[0, 2]])


def test_an_ignored_row_may_hold_anything_but_bad_classes(device):
    student, kept = case()
    target = kept.indices[::5].long().clone()
    target[1] = -100
    wanted = gkd.sparse_loss(student, kept, target)
    student[1] = NAN
    bad = edited(kept, logits={6: NAN}, rest={1: NAN})
    leaf, bad = on(device, student, bad)
    leaf.requires_grad_()
    got = gkd.sparse_loss(leaf, bad, target.to(device))
    got.backward()
    assert error(got.detach(), wanted) <= (0 if device == "cpu" else 2e-6)
    assert not leaf.grad[1].any() and leaf.grad.isfinite().all()
    everything = torch.full((4,), -100, device=device)
    assert gkd.sparse_loss(leaf, bad, everything) == 0


def test_infinities_that_are_legal(device):
    """-inf of a group's teacher or student, and a rest without mass, as gkd.loss has them."""
    student, teacher = pair("flat", (3, 12))
    teacher[0, 3:] = -INF
    student[1, teacher[1].argmax()] = -INF
    student[2, teacher[2].argmin()] = -INF
    for size in (0, 2, 3, 5, 12):
        kept = gkd.teacher_group(teacher, group_size=size)
        there = on(device, kept)
        got = gkd.sparse_loss(student.to(device), there, reduction="none").cpu()
        wanted = gkd.loss(student, teacher, group_size=size, reduction="none")
        assert all(error(a, b) <= 1e-12 or a.equal(b) for a, b in zip(got, wanted, strict=True))
        leaf, same = (student.clone().requires_grad_() for _ in range(2))
        gkd.sparse_loss(leaf.to(device), there).backward()
        gkd.loss(same, teacher, group_size=size).backward()
        assert error(leaf.grad, same.grad) <= 1e-12


TENSORS = [
    ({"indptr": lambda x: x.int()}, TypeError, "teacher_group.indptr must be int64, got Int"),
    ({"indices": lambda x: x.long()}, TypeError, "teacher_group.indices must be int32, got Long"),
    ({"logits": lambda x: x.int()}, TypeError, "teacher_group.logits must be float16, bfloat16"),
    ({"rest": lambda x: x.half()}, TypeError, "rest must be float32 or float64, got Half"),
    ({"indptr": lambda x: x[:-1]}, ValueError, r"indptr must be \[5\] for .* 4 rows, got \[4\]"),
    ({"rest": lambda x: x[:-1]}, ValueError, r"rest must be \[4\], one per row, got \[3\]"),
    ({"logits": lambda x: x[:-1]}, ValueError, r"logits must be \[20\] as its indices, got \[19\]"),
    ({"logits": lambda x: x[None]}, ValueError, r"logits must have one dimension, got \[1, 20\]"),
    ({"logits": lambda x: x.to("meta")}, RuntimeError, "all tensors must be on one device"),
    ({"logits": lambda x: x.requires_grad_()}, ValueError, "logits must not require grad"),
    ({"rest": lambda x: x.requires_grad_()}, ValueError, "rest must not require grad"),
    ({"indices": lambda x: x.tolist()}, TypeError, "indices must be a Tensor, got list"),
]


@pytest.mark.parametrize(("changes", "kind", "text"), TENSORS, ids=lambda x: str(x)[:40])
def test_tensors(changes, kind, text):
    student, kept = case()
    bad = renamed(kept, **{k: change(getattr(kept, k)) for k, change in changes.items()})
    with pytest.raises(kind, match=f"^gkd.sparse_loss: .*{text}"):
        gkd.sparse_loss(student, bad)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"secondary_weight": 1.0}, "secondary_weight must be 0, got 1: a teacher group has not"),
        ({"rank_by": "student"}, "rank_by must be teacher: the group was chosen without"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
        ({"primary_weight": NAN}, "primary_weight must be finite"),
        ({"reduction": "max"}, "reduction must be none, mean or sum"),
        ({"group_size": 3}, "threshold, group_size and group_temperature are settings of gkd.tea"),
        ({"threshold": 0.5}, "threshold, group_size and group_temperature are settings of"),
        ({"group_temperature": 1.0}, "threshold, group_size and group_temperature are settings"),
    ],
)
def test_settings(settings, text):
    student, kept = case()
    with pytest.raises(ValueError, match=f"^gkd.sparse_loss: {text}"):
        gkd.sparse_loss(student, kept, **settings)


def test_what_is_no_group_and_no_keyword():
    student, kept = case()
    with pytest.raises(TypeError, match="teacher_group must be a gkd.TeacherGroup, got Tensor"):
        gkd.sparse_loss(student, student)
    with pytest.raises(TypeError, match="unexpected keyword argument 'smoothing'"):
        gkd.sparse_loss(student, kept, smoothing=0.1)
    with pytest.raises(ValueError, match="distill_margin must be false"):
        torch.ops.gkd.training_sparse_loss(
            student, *kept, torch.full((4,), -100), distill_margin=True
        )
    with pytest.raises(ValueError, match="secondary_weight"):
        gkd.GKDSparseLoss(secondary_weight=1.0)
    with pytest.raises(TypeError, match="threshold"):
        gkd.GKDSparseLoss(threshold=0.5)


@pytest.mark.parametrize("size", [10.0, 1e30, -1e30, 6e4])
def test_logits_of_any_size(size):
    dtype = torch.float64 if abs(size) > 1e20 else torch.float32
    student, teacher = pair("flat", (3, 50), dtype)
    student, teacher = student + size, teacher - size
    kept = gkd.teacher_group(teacher, group_size=7)
    got = gkd.sparse_loss(student, kept, reduction="none")
    wanted = gkd.loss(student, teacher, group_size=7, reduction="none")
    assert got.isfinite().all() and math.isfinite(float(wanted.sum()))
