"""The repository's Markdown, taken apart: fenced blocks, code, links."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")]
)
_FENCE = re.compile(r"^( *)(`{3,})([\w+-]*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}[^\n]*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block and where it stands."""

    page: str
    line: int
    language: str
    code: str

    @property
    def included(self):
        """Whether it is another file's text, which that file's own build or tests answer for."""
        return self.code.lstrip().startswith("--8<--")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The fenced blocks of a language, in order, without their indentation."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        indent, _, name, code = match.groups()
        if name == language:
            code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(name_of(page), line, name, code))
    return found


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


def inline_code(page):
    """What stands as code in the text."""
    rest = _FENCE.sub("", page.read_text())
    return [match[1].replace("\n", " ") for match in _INLINE.finditer(rest)]


def code_of(page):
    """All that stands as code, in blocks and in the text; a command's broken lines joined."""
    text = page.read_text()
    parts = [match[4] for match in _FENCE.finditer(text)]
    rest = _FENCE.sub("", text)
    parts += [match[0] for match in _INDENTED.finditer(rest)]
    parts += inline_code(page)
    return "\n".join(parts).replace("\\\n", " ")


def links(page):
    """Targets of links and images inside the repository, without anchors."""
    text = _FENCE.sub("", page.read_text())
    found = [match[1].split("#")[0] for match in _LINK.finditer(text)]
    return [link for link in found if link and "://" not in link and not link.startswith("mailto:")]
