"""English text that is on every machine which runs this: docstrings of installed packages.

Those of Python's standard library, of torch and of numpy, and the topics of Python's own help. It
is technical prose with examples of code in it, nearly nine million characters. Nothing is
downloaded.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from tqdm import tqdm

#: Where sources lie, and folders in them that are no part of the package.
STANDARD = Path(sysconfig.get_path("stdlib"))
PACKAGES = Path(sysconfig.get_path("purelib"))
SOURCES = {
    STANDARD: ("site-packages", "dist-packages", "test", "tests"),
    PACKAGES / "torch": (),
    PACKAGES / "numpy": (),
}
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")
RARE, END = "<rare>", "<end>"
VALIDATION_SHARE = 0.05


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template, or a file for another version of Python
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def _files() -> list[Path]:
    found = []
    for root, left_out in SOURCES.items():
        paths = sorted(root.rglob("*.py"))
        found += [p for p in paths if not set(left_out) & set(p.relative_to(root).parts)]
    return found


def documents(characters: int | None = None, *, progress: bool = True) -> list[str]:
    """Each docstring and topic without the paragraphs that stood in one before it.

    Args:
        characters: how many are enough; all unless given.
        progress: whether there is a bar.
    """
    seen: set[str] = set()
    found, length = [], 0

    def add(text: str) -> None:
        nonlocal length
        new = [part for part in text.split("\n\n") if part.strip() not in seen]
        seen.update(part.strip() for part in new)
        if kept := "\n\n".join(new).strip():
            found.append(kept)
            length += len(kept)

    for text in topics.values():
        add(text)
    for path in tqdm(_files(), desc="text", unit="file", disable=not progress):
        if characters is not None and length >= characters:
            break
        for text in _docstrings(path):
            add(text)
    return found


def words(text: str) -> list[str]:
    """Words in small letters, digits, and marks, each a token of its own."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Corpus:
    """Tokens as numbers: all documents of a part one after another, in random order."""

    train: Tensor  #: int64 [N]
    validation: Tensor  #: int64 [M]
    vocabulary: list[str]  #: by number

    @property
    def rare(self) -> float:
        """The share of training tokens that are none of the vocabulary's words."""
        return (self.train == self.vocabulary.index(RARE)).double().mean().item()


def corpus(texts: list[str], vocabulary: int) -> Corpus:
    """The most frequent words of the training part are the vocabulary; all others are one token.

    The order and the parts are the same on every run.
    """
    split = [words(text) for text in texts]
    random.Random(0).shuffle(split)
    held_out = max(1, round(VALIDATION_SHARE * len(split)))
    parts = split[held_out:], split[:held_out]
    counts = Counter(word for document in parts[0] for word in document)
    # Ties in order of the alphabet, so that a run can be repeated.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [RARE, END, *ranked[: vocabulary - 2]]
    number = {word: index for index, word in enumerate(kept)}

    def encoded(part: list[list[str]]) -> Tensor:
        return torch.tensor([number.get(w, 0) for document in part for w in [*document, END]])

    return Corpus(encoded(parts[0]), encoded(parts[1]), kept)


def sequences(tokens: Tensor, length: int) -> Tensor:
    """int64 [S, length + 1], one after another; the last token of each is the next one's first."""
    count = (len(tokens) - 1) // length
    return tokens[: count * length + 1].unfold(0, length + 1, length)
