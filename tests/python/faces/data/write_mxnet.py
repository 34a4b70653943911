"""mxnet.rec and mxnet.idx as Apache MXNet 1.9.1 wrote them:

    pip install numpy==1.23.5 requests && pip install --no-deps mxnet==1.9.1
    python tests/python/faces/data/write_mxnet.py

The tests write the same records without MXNet and compare.
"""

from pathlib import Path

PATH = Path(__file__).with_name("mxnet.rec")
MAGIC = b"\x0a\x23\xd7\xce"
L, T = "#......#......#......#......#####..", "#######...#......#......#......#..."


def drawing(marks):
    """An image file of a letter, 7 x 5, the same with every decoder's version."""
    return b"P6 7 5 255\n" + b"".join(b"\xff\xc0\x40" if m == "#" else bytes(3) for m in marks)


#: (key, labels, image). An image begins at a multiple of 4 in its record, which is cut where the
#: magic is at another.
RECORDS = [
    (0, [8.0, 10.0], b""),
    (1, 0.0, drawing(L)),
    (2, [0.0, 0.5], drawing(L[::-1])),
    (3, 0.0, drawing(L) + MAGIC),
    (4, [1.0, 0.5], MAGIC + drawing(T) + MAGIC * 2),
    (5, 1.0, MAGIC * 3 + b"ab" + MAGIC + b"cdefg"),
    (6, 1.0, MAGIC[:2] + MAGIC + MAGIC[2:]),
    (7, [1.0, 0.0, 0.25], drawing(T) * 3),
    (8, [1.0, 4.0], b""),
    (9, [4.0, 8.0], b""),
]


def write(recordio, path):
    """`recordio` is mxnet.recordio, or what has its names."""
    writer = recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, labels, image in RECORDS:
        flag = len(labels) if isinstance(labels, list) else 0
        header = recordio.IRHeader(flag, labels, key, 0)
        writer.write_idx(key, recordio.pack(header, image))
    writer.close()


if __name__ == "__main__":
    import mxnet

    write(mxnet.recordio, PATH)
