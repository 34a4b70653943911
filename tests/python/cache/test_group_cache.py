"""gkd.cache.GroupWriter and GroupReader: what was written is read, in any order, and by others."""

import pickle
import random
import sys

import numpy as np
import pytest
import torch

import gkd

pytest.importorskip("gkd.cache")
import pyarrow as pa

from cached import CLASSES, SETTINGS, made, same, written

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_come_back_to_the_bit_in_any_order(tmp_path, dtype):
    written(tmp_path, range(1000), dtype=dtype, batch_bytes=3000)
    assert len(list(tmp_path.glob("*.arrow"))) > 5
    reader = gkd.cache.GroupReader(tmp_path, num_classes=CLASSES, dtype=dtype, **SETTINGS)
    assert len(reader) == 1000
    mixed = np.random.default_rng(0).permutation(1000)
    for samples in (
        range(1000),
        mixed,
        mixed[:7],
        [3],
        [5, 5, 999, 5],
        [0, 999, 1],  # together in a file, apart here
        [],
    ):
        assert same(reader.read(samples), made(samples, dtype=dtype))
    assert same(reader.read(torch.from_numpy(mixed)), made(mixed, dtype=dtype))


def test_teachers_logits_become_groups_that_come_back(tmp_path):
    settings = {"group_size": 8, "temperature": 3.0, "group_temperature": 1.0}
    teacher = torch.randn(20, 300, dtype=torch.float64)
    target = torch.randint(300, (20,))
    group = gkd.reference.teacher_group(teacher, target, **settings)
    with gkd.cache.GroupWriter(
        tmp_path, num_classes=300, dtype=torch.float64, **settings
    ) as writer:
        assert writer.write(torch.arange(20), group) == 20
    assert same(gkd.cache.GroupReader(tmp_path, **settings).read(torch.arange(20)), group)


def test_samples_and_parts_broadcast(tmp_path):
    samples, parts = np.array([[-(2**63)], [2**63 - 1], [4]]), np.array([-(2**31), 0, 1, 2**31 - 1])
    with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS) as writer:
        assert writer.write(samples, made(samples, parts), parts) == 12
        assert not writer.missing(samples, parts).any()
    reader = gkd.cache.GroupReader(tmp_path)
    assert same(reader.read(samples, parts), made(samples, parts))
    assert same(reader.read([4, 4, 4], [2**31 - 1, 0, -(2**31)]), made(4, [2**31 - 1, 0, -(2**31)]))
    expected = torch.tensor([[False, True, True], [True, True, True]])
    assert reader.missing([[4], [5]], [0, 2, 3]).equal(expected)
    found, numbers = reader.keys()
    assert found.tolist() == np.sort(np.repeat(samples, 4)).tolist()
    assert numbers.tolist() == parts.tolist() * 3 and numbers.dtype == torch.int32


def test_missing_keys_are_named(tmp_path):
    written(tmp_path, range(10))
    reader = gkd.cache.GroupReader(tmp_path)
    with pytest.raises(KeyError, match=r"2 of 4 rows are not in .*sample 10, part 0; sample -1, "):
        reader.read([3, 10, -1, 4])
    with pytest.raises(KeyError, match="1 of 1 rows .*sample 3, part 1"):
        reader.read([3], 1)
    assert reader.missing([3, 10]).tolist() == [False, True]


def test_rows_that_are_there_are_passed_over(tmp_path):
    for repeat in range(3):
        with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS) as writer:
            assert len(writer) == 100 * (repeat > 0)
            new = [writer.write(range(k, k + 60), made(range(k, k + 60))) for k in (0, 40)]
            assert new == ([60, 40] if repeat == 0 else [0, 0])
            assert writer.missing([99, 100]).tolist() == [False, True]
            assert len(writer) == 100
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    assert same(gkd.cache.GroupReader(tmp_path).read(range(100)), made(range(100)))


def test_what_is_given_may_change_afterwards(tmp_path):
    group = made(range(9))
    expected = made(range(9))
    with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS) as writer:
        writer.write(range(9), group)
        for value in group:
            value.zero_()
    assert same(gkd.cache.GroupReader(tmp_path).read(range(9)), expected)


def test_a_reader_stays_as_it_was_opened_and_survives_pickling(tmp_path):
    written(tmp_path, range(50))
    reader = gkd.cache.GroupReader(tmp_path)
    pickled = pickle.dumps(reader)
    reader.read([1])
    assert pickle.dumps(reader) == pickled, "files travel with their reader"
    written(tmp_path, range(50, 90), writer=3)
    again = pickle.loads(pickled)
    assert len(reader) == len(again) == 50 and len(gkd.cache.GroupReader(tmp_path)) == 90
    assert same(again.read([49, 0]), made([49, 0]))


def calls_of(function):
    """How many functions run, Python's and C's."""
    found = []
    sys.setprofile(lambda frame, event, value: found.append(event))
    try:
        function()
    finally:
        sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in found)


def test_a_batch_is_read_without_a_loop_over_its_rows(tmp_path):
    written(tmp_path, range(20_000), step=5_000)
    reader = gkd.cache.GroupReader(tmp_path)
    shuffled = np.random.default_rng(1).permutation(20_000)
    reader.read(shuffled)
    few, many = (calls_of(lambda n=n: reader.read(shuffled[:n])) for n in (20, 20_000))
    assert many == few


def test_many_files_do_not_need_many_descriptors(tmp_path):
    resource = pytest.importorskip("resource")
    written(tmp_path, range(300), step=1, batch_bytes=1)
    assert len(list(tmp_path.glob("*.arrow"))) == 300
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        reader = gkd.cache.GroupReader(tmp_path)
        samples = random.Random(0).sample(range(300), 300)
        assert same(reader.read(samples), made(samples))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_rest_of_others_in_float32_is_kept_as_it_is(tmp_path):
    with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES) as writer:
        given = made(range(9))
        writer.write(range(9), given._replace(rest=(given.rest / 3).float()))
    found = gkd.cache.GroupReader(tmp_path).read(range(9)).rest
    assert found.dtype == torch.float64 and found.equal((given.rest / 3).float().double())


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("size", [32, 64, 1000])
def test_bytes_a_row(tmp_path, size, dtype):
    rows, classes = 2000, 151_936
    group = gkd.TeacherGroup(
        torch.arange(rows + 1) * size,
        torch.arange(size, dtype=torch.int32).repeat(rows),
        torch.randn(rows * size).to(dtype),
        torch.randn(rows),
    )
    with gkd.cache.GroupWriter(
        tmp_path, num_classes=classes, group_size=size, dtype=dtype
    ) as writer:
        writer.write(range(rows), group)
    kept = sum(file.stat().st_size for file in tmp_path.iterdir()) / rows
    needed = size * (4 + dtype.itemsize) + 16
    assert needed < kept < 1.05 * needed, f"{kept} bytes a row, {needed} needed"


def test_others_read_it_without_gkd(tmp_path):
    written(tmp_path, range(40), batch_bytes=500)
    expected = made(range(40))
    rows = {}
    for path in tmp_path.glob("*.arrow"):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        assert table.schema.names == ["sample", "part", "group", "rest"]
        assert b'"temperature": 2.0' in table.schema.metadata[b"gkd"]
        for row in table.to_pylist():
            rows[row["sample"]] = row
    assert sorted(rows) == list(range(40))
    for sample, (first, last) in enumerate(expected.indptr.unfold(0, 2, 1).tolist()):
        pairs = rows[sample]["group"]
        assert [x["class"] for x in pairs] == expected.indices[first:last].tolist()
        assert [float(x["logit"]) for x in pairs] == expected.logits[first:last].tolist()
        assert rows[sample]["rest"] == expected.rest[sample].item()
