"""gkd.cache.EmbeddingWriter and EmbeddingReader: vectors come back, and logits are made of them."""

import numpy as np
import pytest
import torch

import gkd

pytest.importorskip("gkd.cache")

from oracle import same_bits

NAME = "gkd.cache.EmbeddingWriter: "


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_vectors_come_back_in_any_order(tmp_path, dtype):
    images, views, dimension = 300, 2, 24
    all_of_them = torch.randn(images, views, dimension).to(dtype)
    with gkd.cache.EmbeddingWriter(
        tmp_path, dimension=dimension, dtype=dtype, teacher="r50", batch_bytes=5000
    ) as writer:
        for samples in torch.arange(images).split(32):
            given = all_of_them[samples]
            new = writer.write(samples[:, None], given, views=torch.arange(views))
            assert new == len(samples) * views
            given.zero_()
    assert len(list(tmp_path.glob("*.arrow"))) > 3
    reader = gkd.cache.EmbeddingReader(tmp_path, dimension=dimension, dtype=dtype, teacher="r50")
    assert len(reader) == images * views
    samples = torch.randint(images, (64,))
    for view in (0, 1, torch.randint(views, (64,))):
        found = reader.read(samples, view)
        assert found.shape == (64, dimension) and same_bits(found, all_of_them[samples, view])
    both = reader.read(samples[:, None], torch.arange(2))
    assert both.shape == (64, 2, dimension) and same_bits(both, all_of_them[samples])
    assert reader.read([]).shape == (0, dimension)


def test_what_is_there_is_passed_over_and_what_is_not_is_named(tmp_path):
    vectors = torch.randn(30, 5).half()
    for again in range(2):
        with gkd.cache.EmbeddingWriter(tmp_path, dimension=5) as writer:
            writer.write(range(20), vectors[:20])
            assert writer.write(range(10, 30), vectors[10:]) == (0 if again else 10)
            assert writer.missing([29, 30], views=[[0], [1]]).tolist() == [
                [False, True],
                [True, True],
            ]
    reader = gkd.cache.EmbeddingReader(tmp_path)
    assert same_bits(reader.read(range(30)), vectors)
    assert reader.missing([3], 1).tolist() == [True]
    with pytest.raises(KeyError, match="1 of 2 rows are not in .*: sample 3, view 1"):
        reader.read([3, 3], [0, 1])


def test_bytes_a_row(tmp_path):
    """12 beside the embedding: sample and view."""
    with gkd.cache.EmbeddingWriter(tmp_path, dimension=512) as writer:
        writer.write(range(2000), torch.randn(2000, 512).half())
    kept = sum(file.stat().st_size for file in tmp_path.iterdir()) / 2000
    assert 1036 < kept < 1.005 * 1036


def test_a_teacher_from_the_cache_gives_the_loss_of_the_live_one(tmp_path):
    classes, images = 200, 16
    embeddings, head = torch.randn(images, 32), torch.randn(classes, 32)
    with gkd.cache.EmbeddingWriter(tmp_path, dimension=32, dtype=torch.float32) as writer:
        writer.write(range(images), embeddings)
    reader = gkd.cache.EmbeddingReader(tmp_path)
    samples, target = torch.randperm(images), torch.randint(classes, (images,))
    features, weight = torch.randn(images, 8, requires_grad=True), torch.randn(classes, 8)
    values = [
        gkd.training_linear_loss(
            features, weight, teacher, head, target, margin=0.4, rank_by="student", group_size=9
        ).total
        for teacher in (reader.read(samples), embeddings[samples])
    ]
    assert same_bits(*values)


def test_float16_of_unit_vectors_keeps_cosines(tmp_path):
    """The bound that docs/offline.md names: |error of a cosine| <= 0.0005 for lengths of 1."""
    embeddings, head = (
        torch.nn.functional.normalize(torch.randn(n, 512, dtype=torch.float64)) for n in (50, 400)
    )
    with gkd.cache.EmbeddingWriter(tmp_path, dimension=512) as writer:
        writer.write(range(50), embeddings.half())
    kept = gkd.cache.EmbeddingReader(tmp_path).read(range(50)).double()
    cosines = (x @ head.T for x in (torch.nn.functional.normalize(kept), embeddings))
    found, exact = cosines
    assert 1e-6 < (found - exact).abs().max().item() <= 5e-4


X = torch.zeros(2, 3).half()
WRONG = [
    (([1, 2], X[:, :2]), ValueError, r"embeddings must be \[2, 3\], got \[2, 2\]"),
    (([1, 2, 3], X), ValueError, r"embeddings must be \[3, 3\], got \[2, 3\]"),
    (([[1], [2]], X, [0, 1]), ValueError, r"embeddings must be \[2, 2, 3\], got \[2, 3\]"),
    (([1, 2], X.float()), TypeError, "embeddings must be float16, got torch.float32"),
    (
        ([1, 2], X + float("nan")),
        ValueError,
        "embeddings hold NaN or an infinity: sample 1, view 0; sample 2",
    ),
    (
        ([5, 6], X - float("inf")),
        ValueError,
        "embeddings hold NaN or an infinity: sample 5, view 0; sample 6",
    ),
    (([5, 5], X), ValueError, "given twice: sample 5, view 0"),
    (([5, 6], X, 2**31), ValueError, "views must be int32"),
]


@pytest.mark.parametrize(("arguments", "kind", "text"), WRONG)
def test_what_a_writer_does_not_take(tmp_path, arguments, kind, text):
    with (
        gkd.cache.EmbeddingWriter(tmp_path, dimension=3) as writer,
        pytest.raises(kind, match=NAME + text),
    ):
        writer.write(*arguments)


def test_other_settings_than_stored(tmp_path):
    gkd.cache.EmbeddingWriter(tmp_path, dimension=3, teacher="this").close()
    for field, value, text in (
        ("dimension", 4, "dimension = 3, asked for 4"),
        ("dtype", torch.bfloat16, "dtype = 'float16', asked for 'bfloat16'"),
        ("teacher", "another", "teacher = 'this', asked for 'another'"),
    ):
        for opens in (gkd.cache.EmbeddingReader, gkd.cache.EmbeddingWriter):
            with pytest.raises(ValueError, match=text):
                opens(tmp_path, **{"dimension": 3, "teacher": "this", field: value})
    with pytest.raises(TypeError, match="dtype must be one of float16, bfloat16, float32"):
        gkd.cache.EmbeddingWriter(tmp_path, dimension=3, dtype=torch.float64)
    with pytest.raises(ValueError, match="dimension must be >= 1, got 0"):
        gkd.cache.EmbeddingWriter(tmp_path, dimension=0)
    assert np.array_equal(gkd.cache.EmbeddingReader(tmp_path).keys()[0], [])
