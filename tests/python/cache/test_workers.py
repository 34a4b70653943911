"""Readers in a DataLoader's workers, and after any fork."""

import multiprocessing
import os

import pytest
import torch
from torch.utils.data import DataLoader

import gkd

pytest.importorskip("gkd.cache")

from cached import CLASSES, SETTINGS, made, same, written

ROWS = 2000
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")


class Batches:
    """A collate_fn that brings the teacher's rows, and says in which process."""

    def __init__(self, reader):
        self.reader = reader

    def __call__(self, samples):
        return torch.tensor(samples), self.reader.read(samples), os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_four_workers_in_random_order(tmp_path, method):
    written(tmp_path, range(ROWS), batch_bytes=20_000)
    reader = gkd.cache.GroupReader(tmp_path, num_classes=CLASSES, **SETTINGS)
    reader.read(range(0, ROWS, 7))  # maps every file, which a fork then inherits
    loader = DataLoader(
        range(ROWS),
        batch_size=64,
        shuffle=True,
        num_workers=4 if method == "fork" else 1,  # spawned ones import torch first
        collate_fn=Batches(reader),
        multiprocessing_context=method,
        persistent_workers=True,
    )
    processes = set()
    for _ in range(2):
        seen = []
        for samples, group, process in loader:
            assert isinstance(group, gkd.TeacherGroup) and same(group, made(samples))
            seen += samples.tolist()
            processes.add(process)
        assert sorted(seen) == list(range(ROWS)) and seen != list(range(ROWS))
    assert len(processes) == loader.num_workers and os.getpid() not in processes


def test_a_fork_maps_files_for_itself(tmp_path):
    written(tmp_path, range(100))
    reader = gkd.cache.GroupReader(tmp_path)
    reader.read([1])
    (own,) = reader._open.values()

    def child():
        assert same(reader.read(range(100)), made(range(100)))
        (other,) = reader._open.values()
        os._exit(0 if other is not own else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert next(iter(reader._open.values())) is own


@pytest.mark.cuda
def test_pinned(tmp_path):
    if not torch.empty(1).pin_memory().is_pinned():
        pytest.skip("an emulated device pins no memory")
    written(tmp_path, range(100))
    group = gkd.cache.GroupReader(tmp_path).read([3, 99, 4], pin_memory=True)
    assert all(value.is_pinned() for value in group) and same(group, made([3, 99, 4]))
