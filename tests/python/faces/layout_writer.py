"""A second writer of .rec and .idx files, from their layout alone, to judge the reader by.

Little-endian. A .idx file has one line a record, "key<tab>offset of the record in the .rec file". A
record is one part or several:

    u32 magic | u32 kind << 29 | length | length bytes | zeros to the next multiple of 4

Kind 0 is a whole record. Data with the magic at a multiple of 4 bytes would look like a record's
start there, so they are cut at each such place, without those 4 bytes, into kinds 1, 2 ... 2, 3.
"""

import struct

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)


def data(labels, image=b"", key=0, unused=-1.0):
    """A record's data. `labels` is one number (flag 0) or a list (flag: how many), which leaves the
    header's own label unused: MXNet writes 0 there, and -1 is found out where it is read."""
    flag, label, listed = 0, labels, []
    if isinstance(labels, list):
        flag, label, listed = len(labels), unused, labels
    return struct.pack(f"<IfQQ{flag}f", flag, label, key, 0, *listed) + image


def part(kind, piece):
    return MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)


def parts(content):
    """The record's bytes, part by part."""
    starts = [0]
    for place in range(0, len(content) - 3, 4):
        if content[place : place + 4] == MAGIC:
            starts.append(place + 4)
    ends = [start - 4 for start in starts[1:]] + [len(content)]
    kinds = [FIRST, *[MIDDLE] * (len(starts) - 2), LAST] if len(starts) > 1 else [WHOLE]
    return [part(kinds[i], content[starts[i] : ends[i]]) for i in range(len(kinds))]


def write(path, records):
    """Writes `path` and its .idx from {key: data}, in that order; returns {key: byte offset}."""
    offsets, content = {}, b""
    for key, record in records.items():
        offsets[key] = len(content)
        content += b"".join(parts(record))
    path.write_bytes(content)
    path.with_suffix(".idx").write_text("".join(f"{k}\t{at}\n" for k, at in offsets.items()))
    return offsets


def people(identities):
    """InsightFace's {key: data} of one list of (labels, image) for each identity.

    Record 0 has two labels, n1 and n2. Keys 1 to n1 - 1 are images; keys n1 to n2 - 1 are
    identities, whose labels are the first of their images' keys and the one after the last.
    """
    images, ranges = {}, []
    for identity in identities:
        first = len(images) + 1
        for labels, image in identity:
            key = len(images) + 1
            images[key] = data(labels, image, key)
        ranges.append([first, len(images) + 1])
    n1 = len(images) + 1
    ends = {n1 + i: data(limits, b"", n1 + i) for i, limits in enumerate(ranges)}
    return {0: data([n1, n1 + len(ranges)]), **images, **ends}
