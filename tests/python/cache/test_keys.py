"""The index of keys against a dict, and a teacher's fingerprint."""

import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import gkd

pytest.importorskip("gkd.cache")

from gkd.cache._keys import Index, Runs

# Close to each other, so that runs form, meet and overlap; and at the ends of their ranges.
SAMPLES = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**63 - 1])
PARTS = st.one_of(st.integers(0, 6), st.sampled_from([-(2**31), 2**31 - 2, 2**31 - 1]))
FILES = st.lists(st.lists(st.tuples(SAMPLES, PARTS), max_size=12, unique=True), max_size=5)


@given(FILES, st.lists(st.tuples(SAMPLES, PARTS), max_size=20))
def test_index_is_a_dict_in_which_the_first_row_stays(files, queries):
    expected, doubles = {}, []
    for number, keys in enumerate(files):
        for row, key in enumerate(keys):
            if key in expected:
                doubles.append((number, row))
            expected.setdefault(key, (number, row))
    columns = [np.array(keys, np.int64).reshape(-1, 2) for keys in files]
    runs = [Runs.of_rows(x[:, 0], x[:, 1], number) for number, x in enumerate(columns)]
    index = Index(Runs.joined(runs))
    assert index.rows == len(expected)
    assert sorted(zip(index.doubles.file, index.doubles.row, strict=True)) == sorted(doubles)
    listed = index.runs.expanded()
    keys = list(zip(listed.sample.tolist(), listed.first.tolist(), strict=True))
    assert keys == sorted(expected)
    asked = np.array([*queries, *expected], np.int64).reshape(-1, 2)
    found, rows = index.find(asked[:, 0], asked[:, 1])
    for key, file, row in zip(asked.tolist(), found.tolist(), rows.tolist(), strict=True):
        where = expected.get(tuple(key))
        assert file == -1 if where is None else (file, row) == where


def test_consecutive_parts_are_one_run():
    tokens = Runs.of_rows(np.repeat([5, 9], 1000), np.tile(np.arange(1000), 2), 0)
    assert tokens.row.tolist() == [0, 1000] and tokens.length.tolist() == [1000, 1000]


class Teacher(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = torch.nn.Linear(7, 5, dtype=torch.bfloat16)
        self.norm = torch.nn.BatchNorm1d(5)


def test_a_fingerprint_changes_with_anything_and_with_nothing_else():
    state = Teacher().state_dict()
    own = gkd.cache.fingerprint(state)
    assert len(own) == 64 and own == gkd.cache.fingerprint(Teacher().state_dict())
    assert own == gkd.cache.fingerprint(dict(reversed(state.items())))
    strided = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()}
    assert own == gkd.cache.fingerprint(strided)
    others = [
        {**state, "body.bias": state["body.bias"].float()},
        {**state, "body.weight": state["body.weight"].reshape(7, 5)},
        {k.replace("norm", "n0rm"): v for k, v in state.items()},
        {k: v for k, v in state.items() if k != "norm.num_batches_tracked"},
        {**state, "step": 3},
        {**state, "step": 4},
        {**state, "more": {"step": 4}},
    ]
    for name, value in state.items():
        flipped = value.clone().view(-1).view(torch.uint8)
        flipped[-1] ^= 1
        others.append({**state, name: flipped.view(value.dtype).view(value.shape)})
    found = {gkd.cache.fingerprint(other) for other in others}
    assert len(found) == len(others) and own not in found


def test_a_fingerprint_goes_by_chunks(monkeypatch):
    from gkd.cache import _fingerprint

    state = {"a": torch.randn(100, 30), "b": torch.tensor(1.0), "c": torch.empty(0, 4)}
    own = gkd.cache.fingerprint(state)
    monkeypatch.setattr(_fingerprint, "_CHUNK", 500)
    assert gkd.cache.fingerprint(state) == own


def test_a_fingerprint_of_bytes_and_files(tmp_path):
    data = b"teacher" * 1000
    (tmp_path / "file").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert gkd.cache.fingerprint(data) == gkd.cache.fingerprint(tmp_path / "file") == expected
    with pytest.raises(TypeError, match="x must be a Tensor or a plain value, got object"):
        gkd.cache.fingerprint({"x": object()})
