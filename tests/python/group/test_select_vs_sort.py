"""method="select" against method="sort": the same group on every kind of row, and the same bits."""

import pytest
import torch

import gkd
from oracle import DTYPES, rows_and_gradient, same_bits

INF = float("inf")


def flat(rows, classes):
    return torch.randn(rows, classes)


def peaked(rows, classes):
    x = torch.randn(rows, classes) * 8
    x[torch.arange(rows), torch.randint(classes, (rows,))] += 40
    return x


def tied(rows, classes):
    return (torch.randn(rows, classes) * 2).round()


def two_values(rows, classes):
    return torch.where(torch.rand(rows, classes) < torch.rand(rows, 1), 3.0, -1.5)


def padded(rows, classes):
    x = torch.randn(rows, classes) * 3
    return x.masked_fill(torch.rand(rows, classes) < torch.rand(rows, 1) * 0.99, -INF)


def one_bin(rows, classes):
    """All of the mass within a ten-thousandth of a nat."""
    x = torch.rand(rows, classes) * 1e-4 + 7
    x[:, 0] = -1e30
    return x


def geometric(rows, classes):
    x = -torch.arange(classes).float() * torch.rand(rows, 1) * 2
    return x[:, torch.randperm(classes)]


def denormal(rows, classes):
    return torch.randn(rows, classes) * 1e-40


def huge(rows, classes):
    x = torch.randn(rows, classes)
    spots = torch.randint(classes, (rows, 4))
    return x.scatter(1, spots, torch.tensor([1e30, -1e30, 3e38, -3e38]).expand(rows, 4))


def equal(rows, classes):
    return torch.full((rows, classes), -2.5) + torch.randn(rows, 1)


def ascending(rows, classes):
    return torch.randn(rows, classes).sort(1).values


def few_heavy(rows, classes):
    """A handful of classes weigh as much as the tail: the cut lies where the counts say least."""
    x = torch.randn(rows, classes)
    x[:, :5] += torch.rand(rows, 1) + 4 * torch.tensor(float(classes)).log() - 3
    return x


def clustered(rows, classes):
    """As many classes about the cut as the sums may leave open: the search halves them."""
    x = torch.rand(rows, classes) - 60
    x[:, : classes // 32] = torch.rand(rows, classes // 32) * 1e-3
    return x


KINDS = [flat, peaked, tied, two_values, padded, one_bin, geometric, denormal, huge, equal]
KINDS += [ascending, few_heavy, clustered]
SETTINGS = [
    {},
    {"threshold": 0.5, "temperature": 1.0},
    {"threshold": 0.999999, "temperature": 2.0},
    {"rank_by": "student"},
    {"group_size": 1},
    {"group_size": 37, "rank_by": "student"},
]


def same(student, teacher, settings, target=None):
    select, sort = (
        gkd.group(student, teacher, target, return_mask=True, method=method, **settings)
        for method in ("select", "sort")
    )
    for name in ("mask", "size", "cut"):
        assert same_bits(getattr(select, name), getattr(sort, name))
    assert torch.equal(sort.size, sort.mask.sum(1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
# 3 and 50: fewer classes than a pack of any width or than bins; 700: past a block of 512.
@pytest.mark.parametrize(("classes", "rows"), [(3, 40), (50, 40), (700, 30)])
def test_same_group_as_sort(kind, classes, rows):
    for dtype in (torch.float32, torch.bfloat16):  # 13 kinds x 2 x 6 x 110 rows = 17,160
        ranked = kind(rows, classes).to(dtype)
        other = torch.randn(rows, classes).to(dtype)
        for settings in SETTINGS:
            pair = (ranked, other) if settings.get("rank_by") == "student" else (other, ranked)
            same(*pair, settings, torch.randint(classes, (rows,)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_group_as_sort_past_a_segment(kind, dtype):
    ranked = kind(2, 40_000).to(dtype)
    other = torch.randn(2, 40_000).to(dtype)
    for settings in ({}, {"threshold": 0.3, "temperature": 8.0}, {"group_size": 4_321}):
        same(other, ranked, settings)


def run(student, teacher, threads, **settings):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return rows_and_gradient(student, teacher, **settings)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("settings", [{}, {"rank_by": "student"}, {"group_size": 999}], ids=str)
# 1 and 3 rows over 2 threads: rows are shared; 4: taken apart.
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_bits_do_not_depend_on_threads(rows, settings):
    student, teacher = torch.randn(rows, 50_001), torch.randn(rows, 50_001) * 5
    one, two = run(student, teacher, 1, **settings), run(student, teacher, 2, **settings)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@pytest.mark.parametrize("method", ["select", "sort"])
def test_same_bits_every_time(method):
    student, teacher = torch.randn(1, 34_000), torch.randn(1, 34_000) * 5
    first = run(student, teacher, 2, method=method)
    for _ in range(100 if method == "select" else 10):
        again = run(student, teacher, 2, method=method)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_mass_leaves_out_what_has_none(device, dtype):
    """At threshold 1 the cut is the arithmetic's lowest number, which 16 bits do not hold."""
    logits = torch.tensor([[1.0, -INF, 2.0, 0.5]], dtype=dtype, device=device)
    for other in (dtype, torch.float64):
        group = gkd.group(logits.to(other), logits, threshold=1.0, return_mask=True)
        assert group.size.tolist() == [3]
        assert group.mask.tolist() == [[True, False, True, True]]
