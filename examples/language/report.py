"""The table of a run from its CSV files, and nothing else: see `--help`.

runs.csv has the validation perplexity of each student, times.csv seconds of a step in interleaved
rounds, sizes.csv bytes.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from statistics import mean, median, stdev

from examples.glyphs.study import markdown

RESULTS = Path(__file__).parent / "results"
PAGES = (Path(__file__).parent / "README.md", Path(__file__).parents[2] / "docs" / "offline.md")
FILES = ("runs", "times", "sizes")
LABELS = {
    "labels": "no teacher",
    "live": "live, all classes",
    "cached": "on disk, k classes and the rest",
    "renormalised": "on disk, k classes renormalised",
}
ON_DISK = ("cached", "renormalised")
#: Rows of a CSV file, by its name.
Rows = dict[str, list[dict[str, str]]]


def load(directory: Path) -> Rows:
    found = {}
    for name in FILES:
        path = directory / f"{name}.csv"
        found[name] = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return found


def perplexities(rows: Rows, method: str) -> list[float]:
    """In order of seed."""
    own = [row for row in rows["runs"] if row["method"] == method]
    return [float(row["perplexity"]) for row in sorted(own, key=lambda row: int(row["seed"]))]


def spread(values: list[float], sign: str = "") -> str:
    """Mean and sample standard deviation; one value has no spread."""
    text = f"{mean(values):{sign}.1f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.1f}"


def step_ratio(rows: Rows, method: str, to: str = "labels") -> float:
    """Of the times of a step, the median over the rounds: what disturbs a round disturbs both."""
    seconds = {(row["method"], row["round"]): float(row["seconds"]) for row in rows["times"]}
    rounds = {place for _, place in seconds}
    return median(seconds[method, place] / seconds[to, place] for place in rounds)


def table(rows: Rows) -> str:
    """One row a student."""
    sizes = {row["what"]: int(row["bytes"]) for row in rows["sizes"]}
    tokens = {row["what"]: int(row["rows"]) for row in rows["sizes"]}
    cells = [["teacher of the student", "perplexity", "to live", "bytes a token", "MB", "step"]]
    live = perplexities(rows, "live")
    for method, label in LABELS.items():
        found = perplexities(rows, method)
        gaps = [] if method == "live" else [a - b for a, b in zip(found, live, strict=True)]
        a_token, whole = "", ""
        if method in ON_DISK:
            a_token = f"{sizes['cache'] / tokens['cache']:.0f}"
            whole = f"{sizes['cache'] / 1e6:.1f}"
        step = f"{step_ratio(rows, method):.2f}" if rows["times"] else ""
        against = spread(gaps, "+") if gaps else ""
        cells.append([label, spread(found), against, a_token, whole, step])
    return markdown(cells)


def filled(text: str, rows: Rows) -> str:
    """The text whose `<!-- language -->` ... `<!-- end -->` holds the table."""
    new = f"<!-- language -->\n{table(rows)}\n<!-- end -->"
    return re.sub(r"<!-- language -->\n.*?<!-- end -->", lambda _: new, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    build = argparse.ArgumentParser(prog="python -m examples.language.report", description=__doc__)
    build.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
        help="what examples.language wrote (default: the committed results)")  # fmt: skip
    build.add_argument("--pages", action="store_true",
        help="renew the table in README.md and docs/offline.md")  # fmt: skip
    options = build.parse_args(arguments)
    rows = load(options.results)
    if not rows["runs"]:
        build.error(f"--results {options.results} has no runs.csv: run python -m examples.language")
    print(table(rows))
    for page in PAGES if options.pages else ():
        page.write_text(filled(page.read_text(), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
