"""The reader of .rec files against a writer from the layout alone, whole files and damaged ones."""

import os
import re
import runpy
import struct
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import layout_writer as layout
from examples.faces.records import RecordError, Records, RecordWriter

MAGIC = layout.MAGIC
#: A label of its own, behind the first: a cut between the labels.
MAGIC_LABEL = struct.unpack("<f", MAGIC)[0]
#: Images begin at a multiple of 4 in the data: how many parts they make of a record.
IMAGES = {
    "magic first": (MAGIC + b"after", 2),
    "in the middle": (b"1234" + MAGIC + b"5", 2),
    "last": (b"12345678" + MAGIC, 2),
    "alone": (MAGIC, 2),
    "twice in a row": (b"1234" + MAGIC * 2 + b"567", 3),
    "first and last": (MAGIC + b"1234" + MAGIC, 3),
    "four times": (MAGIC * 3 + b"1234" + MAGIC + b"56", 5),
    "one byte late": (b"1" + MAGIC + b"234", 1),
    "two bytes late": (b"12" + MAGIC + b"34", 1),
    "three bytes late": (b"123" + MAGIC + b"4", 1),
    "halves of two": (MAGIC[2:] + MAGIC[:2], 1),
    "unaligned over aligned": (MAGIC[:2] + MAGIC + MAGIC[2:], 1),
    "unaligned, then aligned": (b"12" + MAGIC + b"34" + MAGIC + b"5", 2),
    "cut off by the padding": (b"1234" + MAGIC[:3], 1),
    **{f"{length} bytes": (b"123456789"[:length], 1) for length in range(1, 10)},
}
LABELS = [5.0, [5.0], [5.0, 0.5], [5.0, MAGIC_LABEL], [5.0, 1.0, MAGIC_LABEL, MAGIC_LABEL]]


def read(path):
    """(label, image) of all images, each label in both ways, once every record has been read."""
    records = Records(path)
    for place in range(len(records.keys)):
        records.record(place)
    images = [records[k] for k in range(len(records))]
    assert [records.label(k) for k in range(len(records))] == [label for label, _ in images]
    return images


@pytest.mark.parametrize("name", IMAGES)
def test_images_labels_and_parts(tmp_path, name):
    """Labels of each kind; the magic in the header's numbers, too, which makes cuts before it."""
    image, count = IMAGES[name]
    assert len(layout.parts(layout.data(5.0, image))) == count
    path = tmp_path / "train.rec"
    number = int.from_bytes(MAGIC, "little")
    keys = [0, 1, number, number << 32, number << 32 | number]
    written = [layout.data(labels, image, key) for labels in LABELS for key in keys]
    layout.write(path, dict(enumerate(written)))
    assert read(path) == [(5, image)] * len(written)
    records = Records(path)
    for k in range(len(written)):
        labels, found = records.record(k)
        expected = LABELS[k // len(keys)]
        assert list(labels) == (expected if isinstance(expected, list) else [expected])
        assert found == image


@pytest.mark.parametrize("header_last", [False, True])
def test_a_file_as_insightface_makes_them(tmp_path, header_last):
    """A record of sizes wherever it is, images, and identities, which are no images."""
    bodies = [image for image, _ in IMAGES.values()]
    people = [[(k, bodies[k]), ([k, 0.5], bodies[-k - 1])] for k in range(len(bodies))]
    written = layout.people(people)
    if header_last:
        written[0] = written.pop(0)
    path = tmp_path / "train.rec"
    layout.write(path, written)
    records = Records(path)
    assert records.identities == len(people)
    assert read(path) == [(k, image) for k in range(len(people)) for _, image in people[k]]
    assert records.record(0) == ((2 * len(people) + 1, 3 * len(people) + 1), b"")
    for k in range(len(people)):
        assert records.record(1 + 2 * len(people) + k) == ((2 * k + 1, 2 * k + 3), b"")


def test_the_example_writes_the_same_bytes(tmp_path):
    generator = np.random.default_rng(0)
    pieces = [MAGIC, b"a", b"bcd", MAGIC[:1], MAGIC[2:], b"efgh"]
    images = [image for image, _ in IMAGES.values()] + [b""]
    images += [b"".join(pieces[k] for k in generator.integers(6, size=20)) for _ in range(200)]
    written = [(key, LABELS[key % 5], images[key]) for key in range(len(images))]
    theirs, ours = tmp_path / "theirs.rec", tmp_path / "ours.rec"
    layout.write(theirs, {key: layout.data(*rest, key, unused=0.0) for key, *rest in written})
    with RecordWriter(ours) as writer:
        for record in written:
            writer.write(*record)
    for suffix in (".rec", ".idx"):
        assert ours.with_suffix(suffix).read_bytes() == theirs.with_suffix(suffix).read_bytes()


@pytest.fixture
def small(tmp_path):
    """Whole and split records and each length of padding, the file's end a split one; its .rec,
    .idx, offsets and images."""
    names = ["5 bytes", "in the middle", "twice in a row", "6 bytes", "7 bytes", "last", "8 bytes"]
    bodies = [IMAGES[name][0] for name in names]
    people = [[(3, bodies[0]), ([3, 0], bodies[1])], [(4, body) for body in bodies[2:]]]
    written = layout.people(people)
    # The file ends with a split record: no length of another part reaches the end.
    written[2] = written.pop(2)
    path = tmp_path / "train.rec"
    offsets = layout.write(path, written)
    return path, path.read_bytes(), offsets, read(path)


def test_a_file_that_is_cut_anywhere(small):
    path, whole, offsets, _ = small
    for size in reversed(range(1, len(whole))):
        os.truncate(path, size)
        with pytest.raises(
            RecordError, match=f"record 2 at offset {offsets[2]}: .* ends at {size}"
        ):
            Records(path)
    os.truncate(path, 0)
    with pytest.raises(RecordError, match="an empty file"):
        Records(path)


def framing(whole):
    """(place, kind, length) of each part."""
    place = 0
    while place < len(whole):
        magic, word = struct.unpack_from("<4sI", whole, place)
        assert magic == MAGIC
        kind, length = word >> 29, word & 2**29 - 1
        yield place, kind, length
        place += 8 + length + -length % 4


def named(error, offsets):
    """Whether an error says a record's number and where that record is."""
    found = re.search(r"record (\d+) at offset (\d+): .", str(error))
    return found and offsets[int(found[1])] == int(found[2])


def put(path, place, value):
    """One byte of a file, in place: to write the whole file anew waits for the disk."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([value]))


def test_each_byte_of_the_framing(small):
    """Any other value of a byte of the magic, the kind or a length is an error of a record, but for
    lengths of whole and last parts that take as many bytes with their padding, and the padding."""
    path, whole, offsets, images = small
    # All lengths below 256, all kinds, a few values of the other bytes.
    few = {0, 0xFF, *(1 << bit for bit in range(8)), *(kind << 5 for kind in range(8))}
    silent = 0
    for place, kind, length in framing(whole):
        same_size = range((length + 3) // 4 * 4 - 3, (length + 3) // 4 * 4 + 1)
        for at in range(place, place + 8):
            for value in (set(range(256)) if at == place + 4 else few) - {whole[at]}:
                put(path, at, value)
                try:
                    found = read(path)
                except RecordError as error:
                    assert named(error, offsets)
                    continue
                silent += 1
                assert at == place + 4 and kind in (layout.WHOLE, layout.LAST)
                assert value in same_size
                assert [label for label, _ in found] == [label for label, _ in images]
            put(path, at, whole[at])
        for at in range(place + 8 + length, place + 8 + length + -length % 4):
            put(path, at, 0xFF)
            assert read(path) == images
            put(path, at, 0)
    assert silent  # so little that the padding makes up for it, as the reader's docstring says
    assert path.read_bytes() == whole


def test_each_byte_of_the_index(small):
    """Cut anywhere or with another byte: an error, or the images; the last line is one of them."""
    path, _, _, images = small
    index = path.with_suffix(".idx")
    text = index.read_bytes()

    def noticed():
        try:
            records = Records(path)
            assert [records[k] for k in range(len(records))] == images, index.read_bytes()
        except RecordError:
            return True
        return False

    for at, byte in enumerate(text):
        for other in set(b"0123456789\t\n -.x\xff\0") - {byte}:
            put(index, at, other)
            noticed()
        put(index, at, byte)
    assert index.read_bytes() == text and not noticed()
    for size in reversed(range(len(text) - 1)):
        os.truncate(index, size)
        assert noticed()


MXNET = Path(__file__).with_name("data") / "mxnet.rec"
SCRIPT = runpy.run_path(str(MXNET.with_name("write_mxnet.py")))


class OurRecordIO:
    """What the script takes of mxnet.recordio, by the example's writer."""

    IRHeader = namedtuple("IRHeader", "flag label id id2")

    @staticmethod
    def pack(header, image):
        return header, image

    class MXIndexedRecordIO:
        def __init__(self, idx, rec, mode):
            assert Path(idx) == Path(rec).with_suffix(".idx") and mode == "w"
            self.writer = RecordWriter(Path(rec))

        def write_idx(self, key, packed):
            header, image = packed
            assert header.id == key and header.id2 == 0
            self.writer.write(key, header.label, image)

        def close(self):
            self.writer.__exit__(None, None, None)


def test_what_mxnet_wrote():
    records = Records(MXNET)
    for place, (key, labels, image) in enumerate(SCRIPT["RECORDS"]):
        expected = tuple(labels) if isinstance(labels, list) else (labels,)
        assert records.keys[place] == key and records.record(place) == (expected, image)
    assert records.identities == 2
    assert [label for label, _ in read(MXNET)] == [0, 0, 0, 1, 1, 1, 1]


def test_the_example_writes_what_mxnet_wrote(tmp_path):
    ours = tmp_path / "ours.rec"
    SCRIPT["write"](OurRecordIO, ours)
    for suffix in (".rec", ".idx"):
        assert ours.with_suffix(suffix).read_bytes() == MXNET.with_suffix(suffix).read_bytes()
