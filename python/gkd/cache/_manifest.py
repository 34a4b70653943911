"""gkd.json: what a cache holds and with which settings it was made."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

#: Of the files. A reader knows this one alone.
FORMAT = 2
NAME = "gkd.json"

#: The settings by name, "kind" and "format" among them: plain numbers, strings and None.
Manifest = dict[str, Any]


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]


def load(name: str, directory: Path, kind: str | None = None) -> Manifest:
    """The manifest of a cache of this kind, or of any.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or is of another kind or format.
    """
    path = directory / NAME
    damaged = ValueError(f"{name}: {path} is damaged")
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: {directory} is no cache: it has no {NAME}") from None
    except ValueError:
        raise damaged from None
    if not isinstance(found, dict):
        raise damaged
    compare(name, directory, found, {"format": FORMAT})
    digest = found.pop("digest", None)
    if digest != _digest(found):
        raise damaged
    if kind is not None:
        compare(name, directory, found, {"kind": kind})
    return found


def compare(name: str, directory: Path, stored: Manifest, asked: Manifest) -> None:
    """ValueError for the first setting asked for that is not the stored one."""
    for field, wanted in asked.items():
        if field not in stored:
            raise ValueError(f"{name}: {directory} says nothing of {field}")
        if stored[field] != wanted:
            raise ValueError(
                f"{name}: {directory} was stored with {field} = {stored[field]!r}, asked for "
                f"{wanted!r}"
            )


def create_or_join(name: str, directory: Path, manifest: Manifest) -> None:
    """Makes the folder and its manifest, or checks that the one there is the same."""
    directory.mkdir(parents=True, exist_ok=True)
    path, own = directory / NAME, directory / f".{NAME}-{uuid.uuid4().hex}"
    if not path.exists():
        if any(directory.glob("*.arrow")):
            raise FileNotFoundError(f"{name}: {directory} has batches, but no {NAME}")
        with own.open("w") as file:
            file.write(json.dumps({**manifest, "digest": _digest(manifest)}, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(own, path)  # whole, and by one process alone
        except FileExistsError:
            pass
        finally:
            own.unlink()
    compare(name, directory, load(name, directory), manifest)
