"""gkd.cache.info and gkd.cache.verify: what a cache is, and whether it is as it was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa

from . import _dtypes, _embeddings, _files, _groups, _keys, _manifest, _rows
from ._manifest import Manifest
from ._reader import index_of

_SCHEMAS = {_groups.KIND: _groups.schema_of, _embeddings.KIND: _embeddings.schema_of}


def _opened(name: str, directory: Path) -> tuple[Manifest, pa.Schema, str]:
    manifest = _manifest.load(name, directory)
    kind = manifest["kind"]
    if kind not in _SCHEMAS:
        raise ValueError(f"{name}: {directory} is of an unknown kind, {kind!r}")
    return manifest, _SCHEMAS[kind](manifest), "part" if kind == _groups.KIND else "view"


def info(directory: str | PathLike[str]) -> dict[str, str]:
    """Settings, rows, files, bytes, and bytes a row of a cache, by name.

    Raises:
        FileNotFoundError: it is no cache; ValueError: it is of another version, or damaged.
    """
    name, path = "gkd.cache.info", Path(directory)
    manifest, schema, word = _opened(name, path)
    found = _files.batches(path)
    index = index_of(name, [batch.path for batch in found], schema, word)
    size = sum(batch.path.stat().st_size for batch in found)
    facts = {field: str(value) for field, value in manifest.items()}
    facts["rows"] = f"{index.rows:,}"
    facts["samples"] = f"{len(np.unique(index.runs.sample)):,}"
    if manifest["kind"] == _groups.KIND:
        elements = sum(_elements(_files.read(name, x.path, schema)) for x in found)
        facts["classes a row"] = f"{elements / max(index.rows, 1):.1f}"
    facts["writers"] = str(len({batch.writer for batch in found}))
    facts["files"] = f"{len(found):,}"
    facts["bytes"] = f"{size:,}"
    facts["bytes a row"] = f"{size / max(index.rows, 1):.1f}"
    return facts


def _elements(rows: pa.RecordBatch) -> int:
    return len(rows.column("group").values)


def verify(directory: str | PathLike[str]) -> list[str]:
    """Reads all of a cache and says what is wrong with it; an empty list where nothing is.

    That every file's bytes are those that were written, no batch between two others of a writer is
    gone, every row's values are ones that a writer takes, and no key is there twice. To mend a
    cache, delete the files that are named and let the writers go on.

    Raises:
        FileNotFoundError: it is no cache; ValueError: it is of another version.
    """
    name, path = "gkd.cache.verify", Path(directory)
    manifest, schema, word = _opened(name, path)
    batches = _files.batches(path)
    faults, whole = list(_numbers(batches)), []
    for batch in batches:
        own = list(_faults(name, batch, manifest, schema))
        faults += own
        if not own:
            whole.append(batch.path)
    doubles = index_of(name, whole, schema, word).doubles
    for number, count in sorted(Counter(doubles.file.tolist()).items()):
        there = doubles.file == number
        first = _keys.named(word, doubles.sample[there], doubles.first[there])
        faults.append(f"{whole[number].name}: {count} rows are in another file too: {first}")
    return faults


def _numbers(batches: list[_files.Batch]) -> Iterator[str]:
    there = Counter((batch.writer, batch.number) for batch in batches)
    for writer in sorted({writer for writer, _ in there}):
        for number in range(max(n for w, n in there if w == writer)):
            if (writer, number) not in there:
                yield f"batch {number} of writer {writer} is gone"
    for (writer, number), count in there.items():
        if count > 1:
            yield f"batch {number} of writer {writer} is there {count} times"


def _faults(name: str, batch: _files.Batch, manifest: Manifest, schema: pa.Schema) -> Iterator[str]:
    if _files.digest_of(batch.path) != batch.digest:
        yield f"{batch.path.name}: its bytes are not those that were written"
        return
    try:
        rows = _files.read(name, batch.path, schema)
    except ValueError as error:
        yield f"{batch.path.name}: {str(error).removeprefix(name + ': ')}"
        return
    dtype = _dtypes.ALL[manifest["dtype"]]
    if manifest["kind"] == _groups.KIND:
        found = _rows.fault(_rows.from_arrow(rows), manifest["num_classes"], dtype)
        if found is not None:
            yield f"{batch.path.name}: {found[0]} (row {found[1]})"
    elif not np.isfinite(dtype.floats(_embeddings.values_of(rows))).all():
        yield f"{batch.path.name}: embeddings hold NaN or an infinity"
