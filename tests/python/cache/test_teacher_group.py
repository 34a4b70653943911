"""gkd.reference.teacher_group against gkd.group and a sum in float64; what it refuses."""

import pytest
import torch

import gkd
from oracle import error

INF, NAN = float("inf"), float("nan")
SETTINGS = {
    "threshold": {"threshold": 0.6},
    "size": {"group_size": 5},
    "both": {"threshold": 0.9, "group_size": 3, "group_temperature": 1.0},
    "everything": {"threshold": 1.0},
    "nothing": {"group_size": 0},
}


def rows_of(group):
    """Each row's classes and logits."""
    sizes = group.indptr.diff().tolist()
    return list(zip(group.indices.split(sizes), group.logits.split(sizes), strict=True))


@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_is_the_group_of_the_loss(dtype, settings, with_target):
    # One class, fewer classes than the size, ties by rounding to 16 bits.
    for rows, classes in ((3, 1), (4, 3), (6, 40)):
        teacher = (4 * torch.randn(rows, classes)).to(dtype)
        target = torch.randint(classes, (rows,)) if with_target else None
        found = gkd.reference.teacher_group(teacher, target, temperature=2.0, **settings)
        mask = gkd.group(
            teacher, teacher, target, temperature=2.0, return_mask=True, **settings
        ).mask
        assert found.indptr.dtype == torch.int64 and found.indices.dtype == torch.int32
        assert found.logits.dtype == dtype
        assert found.rest.dtype == torch.float64
        for row, (indices, values) in enumerate(rows_of(found)):
            assert indices.tolist() == mask[row].nonzero().flatten().tolist()
            assert values.equal(teacher[row][mask[row]])
            outside = teacher[row][~mask[row]].double()
            rest = (outside / 2.0).logsumexp(0) if len(outside) else torch.tensor(-INF).double()
            if rest == -INF:
                assert found.rest[row] == -INF
            else:
                assert error(found.rest[row], rest) <= 1e-15


def test_leading_dimensions_are_rows_and_a_narrow_dtype_rounds_the_logits_alone():
    teacher = torch.randn(2, 3, 9)
    found = gkd.reference.teacher_group(teacher, group_size=4, dtype=torch.bfloat16)
    same = gkd.reference.teacher_group(teacher.reshape(6, 9), group_size=4)
    assert found.indptr.equal(same.indptr) and found.indices.equal(same.indices)
    assert found.logits.equal(same.logits.bfloat16()) and found.rest.equal(same.rest)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_row_that_is_no_teacher_is_empty_and_nan(bad):
    teacher = torch.randn(3, 5)
    teacher[1, 2] = bad
    found = gkd.reference.teacher_group(teacher, group_size=2)
    assert found.indptr.tolist() == [0, 2, 2, 4]
    assert found.rest.isnan().tolist() == [False, True, False]


def test_a_logit_that_float16_cannot_hold_makes_its_row_nan():
    teacher = torch.tensor([[7e4, 0.0, 1.0], [7.0, 0.0, 1.0]])
    found = gkd.reference.teacher_group(teacher, group_size=1, dtype=torch.float16)
    assert found.indptr.tolist() == [0, 0, 1] and found.rest.isnan().tolist() == [True, False]


def test_an_ignored_row_has_no_target():
    teacher = torch.randn(2, 5)
    target = torch.tensor([-100, int(teacher[1].argmin())])
    found = gkd.reference.teacher_group(teacher, target, group_size=1)
    assert found.indptr.tolist() == [0, 1, 3]


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "settings", "kind", "text"),
    [
        (([[1.0]],), {}, TypeError, "teacher_logits must be a Tensor, got list"),
        ((X.int(),), {}, TypeError, "teacher_logits must be float16, .* got torch.int32"),
        ((X,), {"dtype": torch.int8}, TypeError, "dtype must be float16, .* got torch.int8"),
        ((X[:, :0],), {}, ValueError, r"teacher_logits must be \[..., C\] .* got \[2, 0\]"),
        ((X, X), {}, TypeError, "target must be int64 or int32, got torch.float32"),
        ((X, X[:, 0:1].long()), {}, ValueError, r"target must be \[2\], got \[2, 1\]"),
        ((X, torch.tensor([0, 3])), {}, IndexError, r"target of row 1 .* \[0, 3\) or -100, got 3"),
        ((X,), {"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0"),
        ((X,), {"group_size": -1}, ValueError, "group_size must be >= 0, got -1"),
        ((X,), {"max_classes": 2}, ValueError, "row 0 has 3 classes, more than max_classes = 2"),
    ],
)
def test_refuses_by_name(arguments, settings, kind, text):
    with pytest.raises(kind, match="gkd.reference.teacher_group: .*" + text):
        gkd.reference.teacher_group(*arguments, **settings)
