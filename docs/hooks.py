"""Adds files from elsewhere in the repository to the site, and rewrites the links of all pages.

A link to a file that is a page of the site becomes a link to the page. A link to any other file
becomes plain text. A link to a file that does not exist stays, and mkdocs reports it as an error.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def outside() -> dict[str, str]:
    """Paths in the repository, and paths on the site, of the pages outside docs/."""
    pages = {
        f"examples/{p.parent.name}/README.md": f"examples/{p.parent.name}.md" for p in EXAMPLES
    }
    return pages | {name: name.lower() for name in ("CONTRIBUTING.md", "CHANGELOG.md")}


EXAMPLES = sorted(ROOT.glob("examples/*/README.md"))
PAGES = outside()


def on_config(config: Any) -> Any:
    """Adds the pages outside docs/ to the navigation, so that a new example needs no entry."""
    titles = {path: path.read_text().split("\n", 1)[0].lstrip("# ") for path in EXAMPLES}
    examples = [{titles[path]: PAGES[str(path.relative_to(ROOT))]} for path in EXAMPLES]
    config.nav += [
        {"Examples": examples},
        {"Project": [{"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    own = page.file.src_uri
    source = next((s for s, p in PAGES.items() if p == own), f"docs/{own}")

    def rewrite(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups()
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        to = PAGES.get(target)
        if target.startswith("docs/"):
            to = target.removeprefix("docs/")
        if to is not None:
            to = posixpath.relpath(to, posixpath.dirname(own) or ".")
            return f"{image}[{text}]({to}{anchor or ''})"
        return text if (ROOT / target).exists() else match[0]

    return LINK.sub(rewrite, markdown)
