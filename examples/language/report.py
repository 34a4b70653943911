"""The table of a run from its CSV files, and nothing else: see `--help`.

runs.csv has the validation perplexity of each student, and the probability that it gives to classes
outside the teacher's k likeliest, its tail; times.csv seconds of a step in interleaved rounds;
sizes.csv bytes.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from statistics import mean, median, stdev

from examples.glyphs.study import markdown

from .losses import SHARES

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


def values(rows: Rows, field: str, method: str, share: float) -> list[float]:
    """Of perplexity or tail, in order of seed."""
    own = [
        row
        for row in rows["runs"]
        if row["method"] == method and float(row["cross_entropy"] or 1) == share
    ]
    return [float(row[field]) for row in sorted(own, key=lambda row: int(row["seed"]))]


def spread(found: list[float], scale: float = 1.0) -> str:
    """Mean and sample standard deviation; one value has no spread."""
    found = [scale * x for x in found]
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


def step_ratio(rows: Rows, method: str, to: str = "labels") -> float:
    """Of the times of a step, the median over the rounds: what disturbs a round disturbs both."""
    seconds = {(row["method"], row["round"]): float(row["seconds"]) for row in rows["times"]}
    rounds = {place for _, place in seconds}
    return median(seconds[method, place] / seconds[to, place] for place in rounds)


def table(rows: Rows) -> str:
    """One row a student."""
    cache = next(row for row in rows["sizes"] if row["what"] == "cache")
    a_token = f"{int(cache['bytes']) / int(cache['rows']):.0f}"
    heads = [f"{name}, {share:g} CE" for name in ("perplexity", "tail %") for share in SHARES]
    cells = [["teacher of the student", *heads, "bytes a token", "step"]]
    for method, label in LABELS.items():
        shares = [1.0] * len(SHARES) if method == "labels" else SHARES
        found = [spread(values(rows, "perplexity", method, share)) for share in shares]
        found += [spread(values(rows, "tail", method, share), 100) for share in shares]
        step = f"{step_ratio(rows, method):.2f}"
        cells.append([label, *found, a_token if method in ON_DISK else "", step])
    teacher = spread(values(rows, "perplexity", "teacher", 1.0))
    tails = [spread(values(rows, "tail", name, 1.0), 100) for name in ("teacher", "text")]
    cells.append(["*the teacher itself*", teacher, "", tails[0], "", "", ""])
    cells.append(["*the text*", "", "", tails[1], "", "", ""])
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
