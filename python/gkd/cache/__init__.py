"""Offline teachers: groups of logits, or embeddings, kept on disk.

A cache is a folder: ``gkd.json`` holds its settings, and every other file is one complete batch of
rows in Arrow's IPC format, which pyarrow, pandas and polars read too. A batch's name ends in the
SHA-256 of its bytes, and it takes that name only when it is whole and on the disk.

``python -m gkd.cache info DIR`` says what a cache is, ``python -m gkd.cache verify DIR`` reads all
of it. Needs pyarrow and numpy: ``pip install "gkd[cache]"``.
"""

try:
    import numpy as _numpy  # noqa: F401
    import pyarrow as _pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gkd.cache needs {error.name}: pip install "gkd[cache]"', name=error.name
    ) from None

from ._embeddings import EmbeddingReader, EmbeddingWriter
from ._fingerprint import fingerprint
from ._groups import GroupReader, GroupWriter
from ._verify import info, verify

__all__ = [
    "EmbeddingReader",
    "EmbeddingWriter",
    "GroupReader",
    "GroupWriter",
    "fingerprint",
    "info",
    "verify",
]
