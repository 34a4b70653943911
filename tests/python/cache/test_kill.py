"""Writers that are killed, at random and at chosen moments: nothing is lost, nothing double."""

import errno
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

import gkd

pytest.importorskip("gkd.cache")

from cached import CLASSES, SETTINGS, made, same, written
from gkd.cache import _files

ROWS, KILLS = 100_000, 10
PROCESSES = multiprocessing.get_context("fork")


def work(folder, number, writers, pause):
    """Writes every writers-th sample that is not there; as a training script would, run again."""
    torch.set_num_threads(1)
    own = np.arange(number, ROWS, writers)
    with gkd.cache.GroupWriter(
        folder, num_classes=CLASSES, writer=number, batch_bytes=100_000, **SETTINGS
    ) as writer:
        for samples in np.array_split(own, 200):
            todo = samples[writer.missing(samples).numpy()]
            if len(todo):
                writer.write(todo, made(todo))
                time.sleep(pause)


def start(folder, number, pause=0.0):
    process = PROCESSES.Process(target=work, args=(folder, number, 2, pause))
    process.start()
    return process


def own_batches(folder):
    return [x for x in folder.glob("*.arrow") if x.name.startswith("00001-")]


def test_killed_ten_times_every_row_is_there_once_and_equal(tmp_path):
    # `pause`: 200 of them last longer than all lives of the killed writer together.
    steady, moments = start(tmp_path, 0), random.Random(18)
    for kill in range(KILLS):
        before, end = len(own_batches(tmp_path)), time.monotonic() + 60
        victim = start(tmp_path, 1, pause=0.02)
        # Every other one as soon as it may be, while it opens the cache; the others at work.
        while kill % 2 and len(own_batches(tmp_path)) == before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        assert victim.exitcode == -signal.SIGKILL, "it had ended before it was killed"
    assert len(own_batches(tmp_path)) >= KILLS // 2, "the killed writer kept nothing"
    steady.join()
    assert steady.exitcode == 0
    assert ROWS // 2 < len(gkd.cache.GroupReader(tmp_path)) < ROWS
    last = start(tmp_path, 1)
    last.join()
    assert last.exitcode == 0
    assert not _files.leftovers(tmp_path)
    assert gkd.cache.verify(tmp_path) == []  # no key twice in it
    reader = gkd.cache.GroupReader(tmp_path, num_classes=CLASSES, **SETTINGS)
    assert len(reader) == ROWS
    samples = np.random.default_rng(0).permutation(ROWS)
    assert same(reader.read(samples), made(samples))


MOMENTS = {
    "half a file": (_files._Hashed, "close"),
    "before its name": (os, "rename"),
    "its name not on the disk yet": (os, "open"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_this_moment(tmp_path, moment):
    written(tmp_path, range(100))

    def dies():
        owner, function = MOMENTS[moment]
        setattr(owner, function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        written(tmp_path, range(200))

    victim = PROCESSES.Process(target=dies)
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    there = 200 if moment.startswith("its name") else 100
    assert len(gkd.cache.GroupReader(tmp_path)) == there and gkd.cache.verify(tmp_path) == []
    assert len(_files.leftovers(tmp_path)) == (there == 100)
    written(tmp_path, [])
    assert not _files.leftovers(tmp_path)
    written(tmp_path, range(200))
    assert not _files.leftovers(tmp_path) and gkd.cache.verify(tmp_path) == []
    assert same(gkd.cache.GroupReader(tmp_path).read(range(200)), made(range(200)))


def test_rows_on_the_disk_are_synced_before_they_have_a_name(tmp_path, monkeypatch):
    """File, name, folder: the order in which a crash of the machine must find them."""
    events = []
    for function in ("fsync", "rename"):
        real = getattr(os, function)
        monkeypatch.setattr(
            os, function, lambda *a, f=function, r=real: (events.append(f), r(*a))[1]
        )
    written(tmp_path / "new", range(10))
    assert events == ["fsync", "fsync", "rename", "fsync"]  # the manifest's first


def test_an_error_in_the_loop_keeps_the_rows_before_it(tmp_path):
    with (
        pytest.raises(RuntimeError, match="the teacher"),
        gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS) as writer,
    ):
        writer.write(range(30), made(range(30)))
        raise RuntimeError("the teacher ran out of memory")
    assert len(gkd.cache.GroupReader(tmp_path)) == 30


def test_a_full_disk_loses_and_doubles_nothing(tmp_path, monkeypatch):
    writer = gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS)
    writer.write(range(30), made(range(30)))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert len(gkd.cache.GroupReader(tmp_path)) == 0
    assert writer.write(range(40), made(range(40))) == 10
    writer.close()
    assert gkd.cache.verify(tmp_path) == [] and not _files.leftovers(tmp_path)
    assert same(gkd.cache.GroupReader(tmp_path).read(range(40)), made(range(40)))


def test_one_process_is_one_writer(tmp_path):
    with gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS):
        with pytest.raises(ValueError, match="another writer 0 is at work"):
            written(tmp_path, range(5))
        written(tmp_path, range(5), writer=1)
        other = PROCESSES.Process(target=written, args=(tmp_path, range(5, 9)))
        other.start()
        other.join()
        assert other.exitcode == 1
    written(tmp_path, range(9))
    assert len(gkd.cache.GroupReader(tmp_path)) == 9


def test_a_closed_writer_takes_nothing(tmp_path):
    writer = gkd.cache.GroupWriter(tmp_path, num_classes=CLASSES, **SETTINGS)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write([1], made([1]))
