"""gkd.centers, gkd.ClassCenters: values, batches, ranks, classes without an embedding, faults."""

import pytest
import torch
import torch.distributed as dist

import gkd
import ranks
from oracle import BOUND, HALVES, error

ROWS, CLASSES, DIMENSION = 500, 23, 17


def made(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    length = 10.0 ** torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)
    embeddings = length * torch.randn(ROWS, DIMENSION, generator=generator, dtype=torch.float64)
    labels = torch.arange(ROWS).remainder(CLASSES)[torch.randperm(ROWS, generator=generator)]
    return embeddings.to(dtype), labels


def plain(embeddings, labels):
    """Class by class, in float64."""
    centers = torch.zeros(CLASSES, DIMENSION, dtype=torch.float64)
    for k in range(CLASSES):
        units = [x / x.norm() for x in embeddings[labels == k].double()]
        mean = torch.stack(units).mean(0)
        centers[k] = mean / mean.norm()
    return centers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_values(dtype, device):
    embeddings, labels = made(dtype)
    found = gkd.centers(embeddings.to(device), labels.int().to(device), CLASSES)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.device.type == device
    assert error(found, plain(embeddings, labels)) <= BOUND[dtype]


def test_batches_views_and_more_later():
    embeddings, labels = made()
    whole = gkd.ClassCenters(CLASSES, DIMENSION, dtype=torch.float64)
    for x, y in zip(embeddings.split(60), labels.split(60), strict=True):
        whole.add(x, y)
    whole.add(embeddings[:0], labels[:0])
    assert error(whole.centers(), plain(embeddings, labels)) <= 1e-13
    assert torch.equal(whole.counts, labels.bincount(minlength=CLASSES))
    views = torch.stack([embeddings, embeddings.flip(1)], 1)
    whole = gkd.centers(views, labels[:, None].expand(-1, 2), CLASSES)
    twice = plain(torch.cat([embeddings, embeddings.flip(1)]), torch.cat([labels, labels]))
    assert error(whole, twice) <= 1e-13


def test_a_teacher_needs_no_head():
    """The centres go where a head's weight goes."""
    embeddings, labels = made(torch.float32)
    weight = gkd.centers(embeddings, labels, CLASSES)
    student, head = torch.randn(ROWS, 8), torch.randn(CLASSES, 8)
    loss = gkd.training_linear_loss(student, head, embeddings, weight, labels)
    assert loss.total.isfinite()


def test_classes_without_an_embedding():
    embeddings, labels = made(torch.float32)
    kept = (labels != 4) & (labels != 9)
    rows = embeddings[kept], labels[kept], CLASSES
    message = "gkd.centers: 2 of 23 classes have no embedding, the first of them class 4"
    with pytest.raises(ValueError, match=message):
        gkd.centers(*rows)
    zero, nan = (gkd.centers(*rows, empty=x) for x in ("zero", "nan"))
    empty = torch.tensor([4, 9])
    assert (zero[empty] == 0).all() and nan[empty].isnan().all()
    others = torch.arange(CLASSES).remainder(23).unsqueeze(0).ne(empty[:, None]).all(0)
    assert torch.equal(zero[others], nan[others]) and zero[others].isfinite().all()


def test_a_nan_is_its_classs_alone_and_a_zero_adds_nothing():
    embeddings, labels = made(torch.float32)
    before = gkd.centers(embeddings, labels, CLASSES)
    embeddings = torch.cat([embeddings, torch.zeros(1, DIMENSION), torch.zeros(2, DIMENSION)])
    embeddings[-2:, 0] = torch.tensor([torch.nan, torch.inf])
    after = gkd.centers(embeddings, torch.cat([labels, torch.tensor([3, 5, 6])]), CLASSES)
    damaged = torch.tensor([5, 6])
    assert after[damaged].isnan().any(1).all()
    others = torch.arange(CLASSES).ne(damaged[:, None]).all(0)
    assert torch.equal(before[others], after[others])


ROW, LABEL = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("kind", "text", "arguments"),
    [
        (ValueError, r"expected embeddings of \[..., D\], got 0-D", (torch.tensor(1.0), LABEL, 3)),
        (ValueError, r"\[3, 4\] need labels of \[3\], got \[2\]", (ROW, LABEL[:2], 3)),
        (TypeError, "unsupported dtype torch.int64 of embeddings", (ROW.long(), LABEL, 3)),
        (TypeError, "labels must be int64 or int32, got torch.float32", (ROW, LABEL.float(), 3)),
        (TypeError, "labels must be a Tensor, got list", (ROW, [0, 1, 2], 3)),
        (TypeError, "num_classes", (ROW, LABEL, 3.0)),
        (ValueError, "num_classes must be >= 1, got 0", (ROW, LABEL, 0)),
        (IndexError, r"label 2 of row 2 is not in \[0, 2\)", (ROW, LABEL, 2)),
        (IndexError, r"label -1 of row 0 is not in \[0, 3\)", (ROW, LABEL - 1, 3)),
        (RuntimeError, "got one on meta", (ROW, LABEL.to("meta"), 3)),
    ],
)
def test_faults(kind, text, arguments):
    with pytest.raises(kind, match=f"^gkd.centers: .*{text}"):
        gkd.centers(*arguments)
    with pytest.raises(ValueError, match="empty must be one of"):
        gkd.centers(ROW, LABEL, 3, empty="skip")
    with pytest.raises(ValueError, match="gkd.ClassCenters: dtype must be float32 or float64"):
        gkd.ClassCenters(3, 4, dtype=torch.float16)


def shards(rank, world_size):
    """Rank r has every third row, the last rank none in the last batch."""
    embeddings, labels = made()
    sums = gkd.ClassCenters(CLASSES, DIMENSION, process_group=dist.group.WORLD, dtype=torch.float64)
    for part in torch.arange(ROWS).split(70):
        own = part[rank :: world_size - 1] if rank < world_size - 1 else part[:0]
        sums.add(embeddings[own], labels[own])
    whole = sums.centers(), sums.class_start

    def fault_of(call):
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    own = labels == rank
    faults = [
        fault_of(lambda: sums.add(embeddings[:1], labels[:1] + CLASSES * (rank == 1))),
        fault_of(
            lambda: gkd.centers(
                embeddings[own], labels[own], CLASSES, process_group=dist.group.WORLD
            )
        ),
    ]
    return *whole, faults


def test_ranks():
    found = ranks.run(3, shards)
    assert [start for _, start, _ in found] == [0, 8, 16]  # 8, 8 and 7 classes
    assert error(torch.cat([part for part, _, _ in found]), plain(*made())) <= 1e-13
    for rank, (_, _, (wrong_label, empty)) in enumerate(found):
        assert ("IndexError" if rank == 1 else "rank 1 was given rows") in wrong_label
        assert "20 of 23 classes have no embedding, the first of them class 3;" in empty
