"""What writers and readers do not take, and that they say what and where."""

import pytest
import torch

import gkd

pytest.importorskip("gkd.cache")

from cached import CLASSES, SETTINGS, made, written

NAN, INF = float("nan"), float("inf")


def group(indptr=(0, 2, 3), indices=(1, 4, 2), logits=(1.0, 2.0, 3.0), rest=(0.0, -INF)):
    """Two rows, and what is wrong with them."""
    return gkd.TeacherGroup(
        torch.tensor(indptr),
        torch.tensor(indices, dtype=torch.int32),
        torch.tensor(logits).half(),
        torch.tensor(rest),
    )


GROUPS = [
    (
        group(indices=(1, 10, 2)),
        ValueError,
        r"indices must be in \[0, 10\), got 10 \(row 0: sample 7",
    ),
    (
        group(indices=(1, 4, -1)),
        ValueError,
        r"indices must be in \[0, 10\), got -1 \(row 1: sample 8",
    ),
    (group(indices=(4, 4, 2)), ValueError, r"class 4 is twice \(row 0: sample 7, part 0\)"),
    (group(indices=(4, 1, 2)), ValueError, r"indices must ascend, got 1 after more \(row 0: "),
    (group(indptr=(0, 3, 2)), ValueError, r"indptr must ascend .* \(row 1: sample 8, part 0\)"),
    (group(indptr=(1, 2, 3)), ValueError, "indptr must ascend from 0 to the number of indices"),
    (group(indptr=(0, 2, 2)), ValueError, "indptr must ascend from 0 to the number of indices"),
    (group(indptr=(0, 4, 3)), ValueError, "indptr must ascend from 0 to the number of indices"),
    (group(indptr=(0, 3)), ValueError, r"indptr must be \[3\], got \[2\]"),
    (group(logits=(1.0, 2.0, NAN)), ValueError, r"logits must be neither NaN nor .* \(row 1: sam"),
    (group(logits=(INF, 2.0, 0.0)), ValueError, r"logits must be neither NaN nor .* \(row 0: sam"),
    (group(logits=(1.0, 2.0)), ValueError, r"indices must be \[2\], got \[3\]"),
    (group(rest=(0.0, NAN)), ValueError, r"rest must be neither NaN nor \+inf \(row 1: sample 8"),
    (group(rest=(INF, 0.0)), ValueError, r"rest must be neither NaN nor \+inf \(row 0: sample 7"),
    (group(rest=(0.0,)), ValueError, r"rest must be \[2\], got \[1\]"),
    (
        group()._replace(logits=torch.zeros(3)),
        TypeError,
        "logits must be torch.float16, got torch.f",
    ),
    (group()._replace(indices=torch.zeros(3).long()), TypeError, "indices must be torch.int32"),
    (group()._replace(indptr=torch.zeros(3)), TypeError, "indptr must be torch.int64"),
    (
        group()._replace(rest=torch.zeros(2).half()),
        TypeError,
        "rest must be torch.float64 or torch.f",
    ),
    (tuple(group()), TypeError, "group must be a gkd.TeacherGroup, got tuple"),
]


@pytest.mark.parametrize(("value", "kind", "text"), GROUPS)
def test_groups(tmp_path, value, kind, text):
    with gkd.cache.GroupWriter(tmp_path, num_classes=10) as writer:
        with pytest.raises(kind, match="gkd.cache.GroupWriter: " + text):
            writer.write([7, 8], value)
        assert writer.write([7, 8], group()) == 2, "the writer is of use afterwards"


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_logits_of_every_dtype(tmp_path, dtype, bad):
    good = group()._replace(logits=torch.tensor([-INF, 3e38, -0.0], dtype=dtype))
    wrong = good._replace(logits=torch.tensor([0.0, bad, -INF], dtype=dtype))
    with gkd.cache.GroupWriter(tmp_path, num_classes=10, dtype=dtype) as writer:
        with pytest.raises(ValueError, match=r"logits must be neither NaN nor .* \(row 0: sam"):
            writer.write([7, 8], wrong)
        assert writer.write([7, 8], good) == 2


def test_logits_of_minus_infinity_and_empty_rows_are_legal(tmp_path):
    value = group(indptr=(0, 0, 3), indices=(0, 5, 9), logits=(-INF, 1.0, 2.0))
    with gkd.cache.GroupWriter(tmp_path, num_classes=10) as writer:
        writer.write([0, 1], value)
    assert gkd.cache.verify(tmp_path) == []
    assert gkd.cache.GroupReader(tmp_path).read([0, 1]).logits.tolist() == [-INF, 1.0, 2.0]


KEYS = [
    (([1, 2, 1], 0), ValueError, "given twice: sample 1, part 0"),
    (([1, 2], [3, 2**31]), ValueError, "parts must be int32"),
    (([1, 2], [1, 2, 3]), ValueError, r"samples \[2\] and parts \[3\] do not fit"),
    (([1.0, 2.0], 0), TypeError, "samples must be integers, got float64"),
    ((torch.tensor([True, False]), 0), TypeError, "samples must be integers, got bool"),
    (([1, 2], [0.0, 1.0]), TypeError, "parts must be integers, got float64"),
]


@pytest.mark.parametrize(("keys", "kind", "text"), KEYS)
def test_keys(tmp_path, keys, kind, text):
    samples, parts = keys
    value = made(range(len(samples)))
    with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES) as writer:
        with pytest.raises(kind, match="gkd.cache.GroupWriter: " + text):
            writer.write(samples, value, parts)
        assert len(writer) == 0


def test_another_number_of_keys_than_rows(tmp_path):
    with (
        gkd.cache.GroupWriter(tmp_path, num_classes=10) as writer,
        pytest.raises(ValueError, match=r"indptr must be \[4\], got \[3\]"),
    ):
        writer.write([7, 8, 9], group())


OTHERS = [
    ("num_classes", 5_001, "num_classes = 5000, asked for 5001"),
    ("temperature", 4.0, "temperature = 2.0, asked for 4.0"),
    ("group_temperature", 1.0, "group_temperature = 2.0, asked for 1.0"),
    ("threshold", 0.93, "threshold = 0.9, asked for 0.93"),
    ("group_size", 64, "group_size = None, asked for 64"),
    ("dtype", torch.float32, "dtype = 'float16', asked for 'float32'"),
    ("teacher", "another", "teacher = 'this', asked for 'another'"),
]


@pytest.mark.parametrize(("field", "value", "text"), OTHERS)
def test_other_settings_than_stored(tmp_path, field, value, text):
    """A reader that is asked for one, and a writer that would add rows of another kind."""
    same = {"num_classes": CLASSES, "teacher": "this", **SETTINGS}
    written(tmp_path, range(9), teacher="this")
    gkd.cache.GroupReader(tmp_path, **same)
    text = rf"{tmp_path} was stored with {text}$"
    with pytest.raises(ValueError, match="gkd.cache.GroupReader: " + text):
        gkd.cache.GroupReader(tmp_path, **{**same, "group_size": None, field: value})
    with pytest.raises(ValueError, match="gkd.cache.GroupWriter: " + text):
        gkd.cache.GroupWriter(tmp_path, **{**same, field: value})


def test_settings_of_the_loss_are_read_as_the_loss_reads_them(tmp_path):
    gkd.cache.GroupWriter(tmp_path, num_classes=9, group_size=4, temperature=2.0).close()
    gkd.cache.GroupReader(tmp_path, group_size=4, temperature=torch.tensor(2.0), primary_weight=1.0)
    gkd.cache.GroupReader(tmp_path, group_size=4, group_temperature=2, coupled=True)
    refused = [
        ({"threshold": 0.9}, "threshold = None, asked for 0.9"),
        ({"temperature": 2.0, "group_temperature": 1.0}, "group_temperature = 2.0, asked for 1.0"),
        ({"rank_by": "student"}, 'rank_by must be "teacher"'),
        ({"secondary_weight": 0.5}, "secondary_weight must be 0, got 0.5"),
        ({"temperature": -1.0}, "temperature must be finite and > 0, got -1"),
    ]
    for settings, text in refused:
        with pytest.raises(ValueError, match=text):
            gkd.cache.GroupReader(tmp_path, **settings)
    other = tmp_path / "other"
    gkd.cache.GroupWriter(other, num_classes=9, temperature=2.0, group_temperature=1.0).close()
    with pytest.raises(ValueError, match=r"group_temperature = 1.0, asked for 2.0"):
        gkd.cache.GroupReader(other, temperature=2.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'heat'"):
        gkd.cache.GroupReader(tmp_path, heat=1.0)


def test_folders_that_are_no_cache_of_groups(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no cache: it has no gkd.json"):
        gkd.cache.GroupReader(tmp_path)
    gkd.cache.EmbeddingWriter(tmp_path, dimension=3).close()
    with pytest.raises(ValueError, match=r"kind = 'gkd.embeddings', asked for 'gkd.teacher_g"):
        gkd.cache.GroupReader(tmp_path)
    (tmp_path / "gkd.json").write_text("{")
    with pytest.raises(ValueError, match="gkd.json is damaged"):
        gkd.cache.GroupReader(tmp_path)
    written(tmp_path / "a", range(3))
    (tmp_path / "a" / "gkd.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has batches, but no gkd.json"):
        written(tmp_path / "a", range(3))


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"dtype": torch.int8}, TypeError, "dtype must be one of float16, .* got torch.int8"),
        ({"num_classes": 0}, ValueError, r"num_classes must be in \[1, 2\^31\], got 0"),
        ({"threshold": 2.0}, ValueError, r"threshold must be in \(0, 1\], got 2"),
        ({"writer": -1}, ValueError, "writer must be >= 0"),
    ],
)
def test_settings_of_a_writer(tmp_path, settings, kind, text):
    with pytest.raises(kind, match="gkd.cache.GroupWriter: " + text):
        gkd.cache.GroupWriter(tmp_path / "new", **{"num_classes": 9, **settings})
    assert not (tmp_path / "new").exists()
