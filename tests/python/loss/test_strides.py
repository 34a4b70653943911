"""Every memory layout gives the loss and the gradient of its contiguous copy: the same bits where
the classes are contiguous, and on the CPU for all strides."""

import pytest
import torch

import gkd
from cases import logits, targets
from oracle import DTYPES, rows_and_gradient, same_bits, same_sums


def transposed(x):
    return x.t().contiguous().t()


def strided_columns(x):
    wide = x.new_full((x.shape[0], x.shape[1] * 3), float("nan"))
    wide[:, 1::3] = x
    return wide[:, 1::3]


def strided_rows(x):
    tall = x.new_full((x.shape[0] * 2, x.shape[1] + 5), float("nan"))
    tall[::2, 5:] = x
    return tall[::2, 5:]


def both_strided(x):
    return strided_columns(x.t()).t()


def negative_view(x):
    return torch._neg_view(-x)


def offset(by):
    def shift(x):
        flat = x.new_full((x.numel() + by,), float("nan"))
        flat[by:] = x.reshape(-1)
        return flat[by:].view(x.shape)

    shift.__name__ = f"offset_{by}"
    return shift


LAYOUTS = [transposed, strided_columns, strided_rows, both_strided, negative_view]
LAYOUTS += [offset(by) for by in range(1, 16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(device, sizes, layout, dtype):
    student, teacher = logits(sizes.strides, dtype, device)
    target = targets(sizes.strides, device)
    expected = rows_and_gradient(student, teacher, target, secondary_weight=0.5)
    for odd_student, odd_teacher in ((True, True), (True, False), (False, True)):
        s = layout(student) if odd_student else student
        t = layout(teacher) if odd_teacher else teacher
        assert torch.equal(s, student) and torch.equal(t, teacher)
        got = rows_and_gradient(s, t, target, secondary_weight=0.5)
        same = same_bits if s.stride(1) == t.stride(1) == 1 else same_sums
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    for rank_by in ("teacher", "student"):
        odd = gkd.group(layout(student), layout(teacher), rank_by=rank_by, return_mask=True)
        even = gkd.group(student, teacher, rank_by=rank_by, return_mask=True)
        same = same_bits if layout(student).stride(1) == 1 else same_sums
        assert all(same(a, b) for a, b in zip(odd, even, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("which", ["rows", "columns"])
def test_expanded(device, sizes, which, dtype):
    rows, classes = sizes.strides
    student, teacher = logits(sizes.strides, dtype, device)
    target = targets(sizes.strides, device)
    s, t = (
        (x[:1] if which == "rows" else x[:, :1]).expand(rows, classes) for x in (student, teacher)
    )
    for odd, plain in (
        ((s, teacher), (s.contiguous(), teacher)),
        ((student, t), (student, t.contiguous())),
    ):
        results = rows_and_gradient(*odd, target), rows_and_gradient(*plain, target)
        assert all(same_sums(a, b) for a, b in zip(*results, strict=True))


def test_targets_of_any_stride(device, sizes):
    student, teacher = logits(sizes.strides, device=device)
    target = targets(sizes.strides, device)
    expected = gkd.loss(student, teacher, target)
    spaced = torch.full((len(target) * 3,), -7, device=device)
    spaced[1::3] = target
    assert same_bits(gkd.loss(student, teacher, spaced[1::3]), expected)
    same = target[:1].expand(len(target))
    assert same_bits(
        gkd.loss(student, teacher, same), gkd.loss(student, teacher, same.contiguous())
    )
