"""Caches that are no longer what was written: every fault is found, and named."""

import json
import random
import shutil

import pytest
import torch

import gkd

pytest.importorskip("gkd.cache")

from cached import made, same, written
from gkd.cache.__main__ import main


def batches(folder):
    return sorted(folder.glob("*.arrow"))


def flipped(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture(params=["groups", "embeddings"])
def folder(request, tmp_path):
    """Three batches of rows."""
    if request.param == "groups":
        written(tmp_path, range(90), step=30, batch_bytes=1)
    else:
        with gkd.cache.EmbeddingWriter(tmp_path, dimension=6, batch_bytes=1) as writer:
            for first in (0, 30, 60):
                writer.write(range(first, first + 30), torch.randn(30, 6).half())
    assert len(batches(tmp_path)) == 3 and gkd.cache.verify(tmp_path) == []
    return tmp_path


def test_a_flipped_bit_anywhere_is_found(folder):
    picked = random.Random(4)
    for path in batches(folder):
        whole = path.read_bytes()
        places = {0, len(whole) - 1, *(picked.randrange(len(whole)) for _ in range(100))}
        for place in places:
            flipped(path, place, picked.randrange(8))
            faults = gkd.cache.verify(folder)
            assert faults == [f"{path.name}: its bytes are not those that were written"], place
            path.write_bytes(whole)
    assert gkd.cache.verify(folder) == []


def test_a_flipped_bit_far_from_the_beginning_is_found(tmp_path):
    """Of a file that is read in several pieces."""
    written(tmp_path, range(60_000), step=20_000)
    (path,) = batches(tmp_path)
    assert path.stat().st_size > 3 * 2**20 and gkd.cache.verify(tmp_path) == []
    flipped(path, path.stat().st_size - 1000, 5)
    assert gkd.cache.verify(tmp_path) == [f"{path.name}: its bytes are not those that were written"]


def test_a_flipped_bit_of_the_manifest_is_found(folder):
    path = folder / "gkd.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        if whole[place : place + 1].isspace():
            continue  # which may become another space
        flipped(path, place, 0)
        with pytest.raises(ValueError, match=r"gkd.json is damaged|format"):
            gkd.cache.verify(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_and_mended(folder, kept):
    path = batches(folder)[1]
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    groups = "teacher_groups" in (folder / "gkd.json").read_text()
    reader = gkd.cache.GroupReader if groups else gkd.cache.EmbeddingReader
    with pytest.raises(ValueError, match=f"{path.name} is truncated or damaged"):
        reader(folder)
    assert gkd.cache.verify(folder) == [f"{path.name}: its bytes are not those that were written"]
    if groups:
        with pytest.raises(ValueError, match=f"{path.name} is truncated or damaged"):
            written(folder, range(90))
        path.unlink()
        written(folder, range(90))
        assert gkd.cache.verify(folder) == []
        assert same(gkd.cache.GroupReader(folder).read(range(90)), made(range(90)))


def test_damage_that_nobody_looked_for_is_an_error_or_other_values(tmp_path):
    """A reader that is opened without verify: no crash, no memory without bounds."""
    written(tmp_path, range(200))
    (path,) = batches(tmp_path)
    whole, picked, refused = path.read_bytes(), random.Random(7), 0
    for _ in range(400):
        flipped(path, picked.randrange(len(whole)), picked.randrange(8))
        try:
            group = gkd.cache.GroupReader(tmp_path).read(range(0, 200, 3))
            assert len(group.indices) < 10_000
        except (ValueError, KeyError):
            refused += 1
        path.write_bytes(whole)
    assert refused


def test_a_batch_that_is_gone_is_named(folder):
    batches(folder)[1].unlink()
    assert gkd.cache.verify(folder) == ["batch 1 of writer 0 is gone"]


def test_another_version_is_refused(folder):
    path = folder / "gkd.json"
    manifest = json.loads(path.read_text())
    assert manifest["format"] == 2
    path.write_text(json.dumps(manifest | {"format": 1}))
    for opens in (gkd.cache.GroupReader, gkd.cache.EmbeddingReader, gkd.cache.verify):
        with pytest.raises(ValueError, match="was stored with format = 1, asked for 2"):
            opens(folder)
    with pytest.raises(ValueError, match="was stored with format = 1, asked for 2"):
        written(folder, range(3))


def test_a_batch_of_another_cache_is_refused(tmp_path):
    written(tmp_path / "a", range(10))
    written(tmp_path / "b", range(10, 20), temperature=8.0)
    stranger = batches(tmp_path / "b")[0]
    shutil.copy(stranger, tmp_path / "a")
    text = f"{stranger.name} has other columns or settings than its cache"
    with pytest.raises(ValueError, match=text):
        gkd.cache.GroupReader(tmp_path / "a")
    faults = gkd.cache.verify(tmp_path / "a")
    assert any(text in fault for fault in faults)


def test_rows_in_two_files_are_read_once_and_named(tmp_path):
    """Two writers that were given the same samples, as a sampler does that pads its last batch."""
    written(tmp_path, range(50))
    written(tmp_path / "other", range(40, 60), writer=1)
    second = batches(tmp_path / "other")[0]
    shutil.copy(second, tmp_path)
    shutil.rmtree(tmp_path / "other")
    reader = gkd.cache.GroupReader(tmp_path)
    assert len(reader) == 60 and same(reader.read(range(60)), made(range(60)))
    (fault,) = gkd.cache.verify(tmp_path)
    assert fault.startswith(f"{second.name}: 10 rows are in another file too: sample 40, part 0;")


def test_values_that_no_writer_takes_are_found(tmp_path, monkeypatch):
    """Of a writer that does not look: with the right digest, but classes out of range."""
    from gkd.cache import _rows

    monkeypatch.setattr(_rows, "check", lambda *_: None)
    group = made(range(5))
    group.indices[-1] = 10_000_000
    with gkd.cache.GroupWriter(tmp_path, num_classes=5_000) as writer:
        writer.write(range(5), group)
    (fault,) = gkd.cache.verify(tmp_path)
    assert r"indices must be in [0, 5000), got 10000000 (row 4)" in fault


def test_the_command(folder, capsys):
    assert main(["info", str(folder)]) == 0
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert facts["rows"] == facts["samples"] == "90" and facts["files"] == "3"
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out == "no faults\n"
    flipped(batches(folder)[2], 100, 3)
    assert main(["verify", str(folder)]) == 1
    assert batches(folder)[2].name in capsys.readouterr().out
    assert main(["info", str(folder / "nowhere")]) == 2
    assert "is no cache" in capsys.readouterr().err
