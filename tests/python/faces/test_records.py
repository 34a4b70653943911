"""The reader of .rec files on what no writer writes, and the loaders of images."""

import multiprocessing
import struct
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import layout_writer as layout
from examples.faces import data
from examples.faces import records as records_module
from examples.faces.images import decode, encode, to_input
from examples.faces.records import RecordError, Records, RecordWriter


def records_of(images):
    """InsightFace's {key: data}: an identity for each image."""
    return layout.people([[(7 * k, image)] for k, image in enumerate(images)])


def test_one_label_and_no_header_record(tmp_path):
    """im2rec and shuffle_rec.py: flag 0, keys in any order, all of them images."""
    path = tmp_path / "shuffled.rec"
    layout.write(path, {k: layout.data(k, b"image", 100 + k) for k in (5, 0, 3)})
    records = Records(path)
    assert records.identities is None and data.count_classes(records) == 6
    assert [records[k] for k in range(3)] == [(k, b"image") for k in (0, 3, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "5 bytes, fewer than a header"),
        (layout.data([3.0, 4.0])[:28], "28 bytes, fewer than 2 labels take"),
        (layout.data(3.0), "it has no image"),
        (layout.data([3.0, 4.0]), "it has no image"),
        (struct.pack("<IfQQ", 65535, 0, 0, 0) + b"image", "fewer than 65535 labels take"),
        (layout.data(float("nan"), b"image"), "label is nan"),
        (layout.data([float("inf"), 0], b"image"), "label is inf"),
        (layout.data([-0.5, 0], b"image"), "label is -0.5"),
        (layout.data(2**24, b"image"), "label is 16777216"),
    ],
)
def test_data_that_are_no_image(tmp_path, content, message):
    path = tmp_path / "train.rec"
    offsets = layout.write(path, {0: layout.data(1, b"image"), 1: content, 2: layout.data(1, b"x")})
    records = Records(path)
    for read in (records.__getitem__, records.label):
        with pytest.raises(RecordError, match=f"record 1 at offset {offsets[1]}: .*{message}"):
            read(1)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 6], "2 images, and record 3 is an image"),
        ([5, 8], "4 images, and record 4 is no image"),
        ([9, 9], "8 images, and the index has 6"),
        ([3.5, 6], "no ranges"),
        ([4, 3], "no ranges"),
        ([0, 3], "no ranges"),
        ([4, float("nan")], "no ranges"),
        ([4, float("inf")], "no ranges"),
    ],
)
def test_a_record_of_sizes_that_is_wrong(tmp_path, ends, message):
    """As a float32 above 2^24 is: it may leave an image out, or take an identity in."""
    path = tmp_path / "train.rec"
    layout.write(path, records_of([b"x"] * 3) | {0: layout.data(ends)})
    with pytest.raises(RecordError, match=f"record 0 at offset 0: .*{message}"):
        Records(path)


def test_an_index_that_is_none(tmp_path):
    path = tmp_path / "train.rec"
    layout.write(path, records_of([b"x"]))
    texts = ("0\t0\n1", "zero\t0\n", "", "0\t0\n0\t40\n", "0\t0\n1\t0\n", "0\t0\n1\t4e1\n")
    for text in texts:
        path.with_suffix(".idx").write_text(text)
        with pytest.raises(RecordError, match="train.idx"):
            Records(path)
    for offset in (-4, 4, 10**9):
        path.with_suffix(".idx").write_text(f"0\t{offset}\n")
        with pytest.raises(RecordError, match=f"record 0 at offset {offset}"):
            Records(path)


def test_a_record_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "_LONGEST", 100)
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, 1.0, bytes(76))
        with pytest.raises(ValueError, match="record 1: 101 bytes, more than 100"):
            writer.write(1, 1.0, bytes(77))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "train.rec"
    generator = np.random.default_rng(0)
    with RecordWriter(path) as writer:
        writer.write(0, [65, 69])
        for k in range(64):
            # Noise, so that a file has the 8 to 10 KB of an aligned face's.
            pixels = generator.integers(0, 220, (14, 14, 3)).repeat(8, 0).repeat(8, 1)
            pixels += generator.integers(0, 30, pixels.shape)
            writer.write(k + 1, [k % 4, 0], encode(pixels.astype(np.uint8)))
    return path


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_process_reads(photographs, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    images = data.Photographs(Records(photographs), 4)
    order = [(k, bool(k % 2)) for k in range(64)]
    batches = [order[k : k + 8] for k in range(0, 64, 8)]
    images[order[0]]  # the process has read before its workers start
    kinds = {"batch_sampler": batches, "num_workers": 2, "multiprocessing_context": method}
    found = list(DataLoader(images, **kinds))
    alone = list(DataLoader(images, batch_sampler=batches))
    for ours, theirs in zip(alone, found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)


def test_a_damaged_image_is_named(tmp_path):
    path = tmp_path / "train.rec"
    offsets = layout.write(path, records_of([b"no image"]))
    with pytest.raises(ValueError, match=f"record 1 at offset {offsets[1]}: no image that can be"):
        data.Photographs(Records(path), 10)[0, False]


def test_labels_are_those_of_the_head(photographs):
    with pytest.raises(ValueError, match="record 4 at offset .*: label 3 of 3 classes"):
        data.Photographs(Records(photographs), 3)[3, False]


def test_the_ranks_have_the_batch_between_them():
    whole = data.Batches(50, 8, seed=1)
    parts = [data.Batches(50, 8, seed=1, rank=k, ranks=2) for k in range(2)]
    for batches in (whole, *parts):
        batches.epoch, batches.first = 3, 2
    assert [a + b for a, b in zip(*parts, strict=True)] == list(whole)
    assert len(whole) == len(list(whole)) == 4
    assert {flip for batch in whole for _, flip in batch} == {True, False}


def test_normalisation_and_mirroring():
    pixels = torch.arange(2 * 2 * 4 * 3, dtype=torch.uint8).reshape(2, 2, 4, 3) * 5
    plain = to_input(pixels)
    assert plain.shape == (2, 3, 2, 4)
    assert abs(plain[1, 2, 1, 3].item() - (pixels[1, 1, 3, 2].item() / 127.5 - 1)) < 1e-6
    mirrored = to_input(pixels, torch.tensor([False, True]))
    assert torch.equal(mirrored[0], plain[0]) and torch.equal(mirrored[1], plain[1].flip(2))


@pytest.mark.large
def test_a_core_reads_3000_images_a_second(photographs, capsys):
    """Decoded and normalised; what the decoder alone does, beside it. Processor's time."""
    records = Records(photographs)
    images = data.Photographs(records, 4)
    files = [records[k][1] for k in range(64)]

    def read():
        rows = [images[k, False] for k in range(64)]
        to_input(torch.stack([row[0] for row in rows]))

    def rate(call):
        best = 0.0
        for _ in range(10):
            start = time.thread_time()
            for _ in range(5):
                call()
            best = max(best, 5 * 64 / (time.thread_time() - start))
        return best

    torch.set_num_threads(1)
    reading, decoding = rate(read), rate(lambda: [decode(file) for file in files])
    with capsys.disabled():
        print(f"\n{reading:.0f} images a second, {decoding:.0f} by the decoder alone")
    assert reading >= 3000
