"""A second writer of .rec files, from the layout alone, that shares nothing with the example's.

Words of 32 bits, little-endian: a record is cut at every word that is the magic number.
"""

import struct


def record_bytes(payload):
    """The parts of a record, padded to whole words."""
    padded = payload + b"\0" * (-len(payload) % 4)
    words = struct.unpack(f"<{len(padded) // 4}I", padded)
    whole_words = len(payload) // 4  # the magic in the padding is none
    pieces, piece = [], []
    for place, word in enumerate(words):
        if word == 0xCED7230A and place < whole_words:
            pieces.append((piece, 4 * len(piece)))
            piece = []
        else:
            piece.append(word)
    used = sum(length for _, length in pieces) + 4 * len(pieces)
    pieces.append((piece, len(payload) - used))
    out = b""
    for number, (piece, length) in enumerate(pieces):
        if len(pieces) == 1:
            kind = 0
        elif number == 0:
            kind = 1
        else:
            kind = 2 if number < len(pieces) - 1 else 3
        out += struct.pack("<2I", 0xCED7230A, kind * 2**29 + length)
        out += struct.pack(f"<{len(piece)}I", *piece)
    return out


def header_bytes(labels, number, flag=None):
    """An IRHeader: one label with flag 0, else `flag` of them behind it."""
    if flag == 0 or (flag is None and len(labels) == 1):
        return struct.pack("<If", 0, labels[0]) + struct.pack("<2Q", number, 0)
    head = struct.pack("<If", len(labels), 0.0) + struct.pack("<2Q", number, 0)
    return head + b"".join(struct.pack("<f", label) for label in labels)


def write(path, records):
    """(key, payload) pairs; returns the offsets."""
    offsets, body = [], b""
    for _, payload in records:
        offsets.append(len(body))
        body += record_bytes(payload)
    path.write_bytes(body)
    lines = (f"{key}\t{at}\n" for (key, _), at in zip(records, offsets, strict=True))
    path.with_suffix(".idx").write_text("".join(lines))
    return offsets
