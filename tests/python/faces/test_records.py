"""The reader of .rec files, against a writer that was made from the layout alone."""

import multiprocessing
import struct
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import written
from examples.faces import data
from examples.faces.images import decode, encode, to_input
from examples.faces.records import MAGIC, RecordError, Records, RecordWriter

WORD = struct.pack("<I", MAGIC)
#: Aligned and not, at either end, twice in a row, and half of one.
BODIES = [
    b"plain",
    b"",
    WORD,
    WORD + WORD,
    b"1234" + WORD + b"5",
    b"12" + WORD + b"345",
    WORD[:2] + WORD + WORD[2:] + WORD,
    b"abcd" + WORD + WORD + b"efgh" + WORD,
    b"abc" + WORD[:3],
]


def records_of(bodies):
    """InsightFace's: a header record, images with one label and with two, identities."""
    count = len(bodies)
    made = [(0, written.header_bytes([count + 1, count + 4], 0))]
    for k, body in enumerate(bodies):
        labels = [7 * k] if k % 2 else [7 * k, 0.5]
        made.append((k + 1, written.header_bytes(labels, k + 1) + b"!" + body))
    identities = [(count + 1 + k, written.header_bytes([1, 2], 9)) for k in range(3)]
    return made + identities


def test_what_another_program_wrote(tmp_path):
    path = tmp_path / "train.rec"
    written.write(path, records_of(BODIES))
    records = Records(path)
    assert len(records) == len(BODIES) and records.identities == 3
    for k, body in enumerate(BODIES):
        assert records[k] == (7 * k, b"!" + body)
        assert records.label(k) == 7 * k


def test_one_label_and_no_header_record(tmp_path):
    """im2rec and shuffle_rec.py: flag 0, keys in any order, all of them images."""
    path = tmp_path / "shuffled.rec"
    keys = [5, 0, 3]
    written.write(path, [(k, written.header_bytes([k], k, flag=0) + b"image") for k in keys])
    records = Records(path)
    assert records.identities is None and data.count_classes(records) == 6
    assert [records[k] for k in range(3)] == [(k, b"image") for k in (0, 3, 5)]


def test_both_writers_agree(tmp_path):
    generator = np.random.default_rng(0)
    bodies = BODIES + [
        b"".join(generator.choice([WORD, b"a", b"bcd", WORD[:1]], 20)) for _ in range(50)
    ]
    theirs = tmp_path / "theirs.rec"
    written.write(theirs, records_of(bodies))
    ours = tmp_path / "ours.rec"
    with RecordWriter(ours) as writer:
        writer.write(0, [len(bodies) + 1, len(bodies) + 4])
        for k, body in enumerate(bodies):
            writer.write(k + 1, 7 * k if k % 2 else [7 * k, 0.5], b"!" + body)
    size = ours.stat().st_size
    assert ours.read_bytes() == theirs.read_bytes()[:size]
    one = Records(theirs)
    for k, body in enumerate(bodies):
        assert one[k][1] == b"!" + body


FAULTS = [
    (lambda b, at: b[: at[2] + 3], 2, "the file ends at"),
    (lambda b, at: b[: at[2] + 14], 2, "and the file ends at"),
    (lambda b, at: b[: at[2]] + b"\0" + b[at[2] + 1 :], 2, "no magic number"),
    (lambda b, at: b[: at[5] + 4] + struct.pack("<I", 5) + b[at[5] + 8 :], 5, "a header's"),
    (lambda b, at: b[: at[3] + 7] + b"\x40" + b[at[3] + 8 :], 3, "a part of kind 2"),
    (lambda b, at: b[: at[2] + 8] + b"\xff\xff" + b[at[2] + 10 :], 2, "labels take"),
    (lambda b, at: b[: at[2] + 12] + b"\0\0\xc0\x7f" + b[at[2] + 16 :], 2, "label is nan"),
    (lambda b, at: b[: at[2] + 12] + b"\0\0\0\xbf" + b[at[2] + 16 :], 2, "label is -0.5"),
]


@pytest.mark.parametrize(("damage", "key", "message"), FAULTS)
def test_damage_is_named(tmp_path, damage, key, message):
    path = tmp_path / "train.rec"
    bodies = [b"b" * 20] * 5
    offsets = written.write(path, records_of(bodies))
    path.write_bytes(damage(path.read_bytes(), offsets))
    records = Records(path)
    with pytest.raises(RecordError, match=message) as error:
        for k in range(len(records)):
            records[k]
    assert f"record {key} at offset {offsets[key]}" in str(error.value)


def test_a_split_record_that_is_cut_short(tmp_path):
    path = tmp_path / "train.rec"
    offsets = written.write(path, records_of([b"x", b"abc" + WORD + b"defg"]))
    path.write_bytes(path.read_bytes()[: offsets[2] + 40])
    with pytest.raises(RecordError, match=f"record 2 at offset {offsets[2]}"):
        Records(path)[1]


def test_an_index_that_is_none(tmp_path):
    path = tmp_path / "train.rec"
    written.write(path, records_of([b"x"]))
    for text in ("0\t0\n1", "zero\t0\n", ""):
        path.with_suffix(".idx").write_text(text)
        with pytest.raises(RecordError, match="train.idx"):
            Records(path)
    path.with_suffix(".idx").write_text("0\t0\n")
    with pytest.raises(RecordError, match="tells of 1 images, the index of 0"):
        Records(path)


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
    offsets = written.write(path, records_of([b"no image"]))
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
