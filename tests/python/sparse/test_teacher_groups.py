"""gkd.teacher_group: the groups of gkd.loss, and the log-sum-exp of all other classes."""

import pytest
import torch

import gkd
from cases import targets
from oracle import error, same_bits
from sparse import GROUPINGS, KINDS, pair

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_masks_of_the_loss(device, sizes, kind, how, dtype):
    shapes = sizes.parity if device == "cpu" else sizes.parity[2:6]
    for shape in shapes:
        _, teacher = pair(kind, shape, dtype)
        teacher = teacher.to(device)
        for target in (None, targets(shape, device)):
            kept = gkd.teacher_group(teacher, target, temperature=3.0, **GROUPINGS[how])
            mask = gkd.group(
                teacher, teacher, target, temperature=3.0, return_mask=True, **GROUPINGS[how]
            ).mask
            assert kept.indptr.dtype == torch.int64 and kept.indices.dtype == torch.int32
            assert kept.indptr.equal(torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)))
            assert kept.indices.equal(mask.nonzero()[:, 1].int())
            assert same_bits(kept.logits, teacher[mask])
            wide = teacher.cpu().double().masked_fill(mask.cpu(), -INF) / 3.0
            assert kept.rest.dtype == torch.float64
            wanted = wide.logsumexp(1)
            finite = wanted > -INF
            assert finite.equal((kept.rest > -INF).cpu())
            assert error(kept.rest.cpu()[finite], wanted[finite]) <= 1e-14


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_equals_the_reference(dtype):
    _, teacher = pair("peaked", (6, 300), torch.float32)
    target = targets((6, 300))
    target[3] = -100
    teacher[1, 7], teacher[4] = NAN, -INF
    own = {"threshold": 0.8, "group_size": 40, "dtype": dtype}
    got = gkd.teacher_group(teacher, target, **own)
    wanted = gkd.reference.teacher_group(teacher, target, **own)
    for a, b in zip(got[:3], wanted[:3], strict=True):
        assert same_bits(a, b)
    assert got.rest.isnan().tolist() == [False, True, False, False, True, False]
    assert error(got.rest.nan_to_num(), wanted.rest.nan_to_num()) <= 1e-14
    assert got.indptr.diff()[[1, 4]].tolist() == [0, 0]


def test_a_logit_that_16_bits_do_not_hold_makes_its_row_nan():
    teacher = torch.tensor([[1.0, 2.0], [7e4, 0.0], [3.0, 1.0]])
    kept = gkd.teacher_group(teacher, group_size=1, dtype=torch.float16)
    assert kept.indices.tolist() == [1, 0] and kept.indptr.tolist() == [0, 1, 1, 2]
    assert kept.rest.isnan().tolist() == [False, True, False]
    rows = gkd.sparse_loss(torch.zeros(3, 2), kept, reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


def test_rows_in_any_number_of_chunks():
    """Rows so long that a chunk holds one or two of them."""
    _, teacher = pair("flat", (5, 1_200_000), torch.float32)
    kept = gkd.teacher_group(teacher, group_size=9)
    for row in range(5):
        one = gkd.teacher_group(teacher[row], group_size=9)
        mine = slice(*kept.indptr[row : row + 2].tolist())
        assert same_bits(kept.indices[mine], one.indices)
        assert same_bits(kept.logits[mine], one.logits)
        assert same_bits(kept.rest[row : row + 1], one.rest)


@pytest.mark.parametrize("size", [1e30, -1e30, 6e4])
def test_logits_of_any_size(size):
    kept = gkd.teacher_group(torch.full((1, 4), size, dtype=torch.float64), group_size=0)
    assert kept.rest.isfinite().all()


def test_largest_group(device):
    teacher = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [9.0, 1.0, 1.0]], device=device)
    assert gkd.teacher_group(teacher, group_size=1, max_classes=3).indices.numel() == 5
    text = r"^gkd.teacher_group: the group of row 1 has 3 classes, more than max_classes = 2$"
    with pytest.raises(ValueError, match=text):
        gkd.teacher_group(teacher, group_size=1, max_classes=2)


def test_no_row_and_no_class():
    kept = gkd.teacher_group(torch.zeros(0, 5))
    assert kept.indptr.tolist() == [0] and kept.rest.shape == kept.indices.shape == (0,)
    with pytest.raises(ValueError, match="teacher_group: .* at least one class"):
        gkd.teacher_group(torch.zeros(3, 0))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"threshold": 0.0}, ValueError, r"threshold must be in \(0, 1\], got 0"),
        ({"group_size": -1}, ValueError, "group_size must be >= 0"),
        ({"temperature": NAN}, ValueError, "temperature must be finite"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float16, bfloat16, float32 or float64"),
        ({"dtype": "half"}, TypeError, "dtype must be a torch.dtype or None, got 'half'"),
        ({"max_classes": -1}, ValueError, "max_classes must be >= 0, got -1"),
        ({"max_classes": 1.5}, TypeError, "max_classes must be an integer"),
        ({"target": torch.tensor([0, 5])}, IndexError, r"target 5 is out of bounds .* \(row 1\)"),
        ({"target": torch.tensor([0])}, ValueError, r"target must be \[2\], got \[1\]"),
    ],
)
def test_refuses(arguments, kind, text):
    with pytest.raises(kind, match=f"^gkd.teacher_group: .*{text}"):
        gkd.teacher_group(torch.zeros(2, 5), **arguments)


def test_refuses_what_is_no_tensor_by_its_name():
    with pytest.raises(TypeError, match="^gkd.teacher_group: teacher_logits must be a Tensor"):
        gkd.teacher_group([[1.0]])
    with pytest.raises(ValueError, match="rank_by must be teacher"):
        torch.ops.gkd.teacher_group(torch.zeros(2, 5), rank_by="student")
    with pytest.raises(RuntimeError, match="data-dependent shape"):
        gkd.teacher_group(torch.zeros(2, 5, device="meta"))


def test_a_teacher_that_requires_grad_gives_constants():
    kept = gkd.teacher_group(torch.randn(2, 5, requires_grad=True))
    assert not any(x.requires_grad for x in kept)
