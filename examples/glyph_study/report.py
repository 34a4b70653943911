"""Tables and figures of the study from its raw rows, and nothing else: see `--help`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import mean, stdev

from examples.glyphs.study import markdown

from . import plan
from .record import Row, load, where

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
README = Path(__file__).parents[1] / "glyphs" / "README.md"
FIGURES = Path(__file__).parents[2] / "docs" / "figures"
SCORE = "test_tar_1e-2"
# Sizes and lengths of training.
COLUMNS = [*((shape, 1) for shape in plan.SHAPES), (plan.TUNED_SHAPE, plan.LONGER)]


def reported(
    rows: list[Row], recipe: str, shape: str = plan.TUNED_SHAPE, longer: int = 1
) -> list[Row]:
    """The tested runs of a recipe, in order of seed; none until it was tested on every split."""
    recipe = {"PB-student": "gkd-student"}.get(recipe, recipe)
    epochs = where(rows, stage="tune")[0]["epochs"] * longer
    found = where(rows, stage="test", recipe=recipe, shape=shape, epochs=epochs)
    whole = len(found) == len(where(rows, stage="teacher"))
    return sorted(found, key=lambda row: int(row["seed"])) if whole else []


def tries(rows: list[Row], recipe: str) -> list[tuple[plan.Try, Row]]:
    """What tuning tried, in its order."""
    ladder = plan.ladder(recipe)
    done: list[tuple[plan.Try, float]] = []
    found = []
    for row in where(rows, stage="tune", recipe=recipe):
        entry = plan.next_try(done, ladder.seconds)
        if entry is None:
            raise ValueError(f"{recipe} has more than {plan.TRIES} tries")
        done.append((entry, row["val_tar"]))
        found.append((entry, row))
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in percent; one value has no spread."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def compare(rows: list[Row], reference: list[Row], score: str = SCORE) -> tuple[str, str]:
    """The mean difference on the same splits, and `above`, `below` or `tie`; of one split, `?`.

    A tie is what differs in sign between the seeds, or in the mean by less than the standard
    deviation of the differences.
    """
    seeds = [row["seed"] for row in rows]
    if seeds != [row["seed"] for row in reference]:
        raise ValueError(f"not the same seeds: {seeds} and {[r['seed'] for r in reference]}")
    gaps = [row[score] - other[score] for row, other in zip(rows, reference, strict=True)]
    said = f"{100 * mean(gaps):+.1f}"
    if len(gaps) == 1:
        return said, "?"
    one_sign = all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)
    if not one_sign or abs(mean(gaps)) <= stdev(gaps):
        return said, "tie"
    return said, "above" if gaps[0] > 0 else "below"


def _against(rows: list[Row], reference: list[Row]) -> str:
    if rows == reference:
        return ""
    gap, verdict = compare(rows, reference)
    return f"{gap} {verdict}"


def main_table(rows: list[Row]) -> str:
    """Every loss at its tuned setting, with the teachers above."""
    head = ["", "weight", "warm-up", "TAR@1e-2", "to CE", "to KD", "TAR@1e-3", "top-1", "step"]
    lines = [head]
    teachers = where(rows, stage="teacher")
    scores = (SCORE, "test_tar_1e-3", "top1")
    wide, narrow, top = (spread([row[name] for row in teachers]) for name in scores)
    lines.append(["teacher", "", "", wide, "", "", narrow, top, ""])
    cross_entropy, kd = reported(rows, "ce"), reported(rows, "kd")
    for name in plan.MAIN:
        found = reported(rows, name)
        wide, narrow, top = (spread([row[score] for row in found]) for score in scores)
        (time,) = where(rows, stage="time", recipe=name)
        first = found[0]
        lines.append(
            [
                plan.RECIPES[name].label,
                f"{first['weight']:g}" if first["weight"] else "",
                f"{first['warmup']:g}" if first["weight"] else "",
                wide,
                _against(found, cross_entropy),
                _against(found, kd),
                narrow,
                top,
                f"{time['to_ce']:.2f}",
            ]
        )
    return markdown(lines)


def ablation_table(rows: list[Row]) -> str:
    """The terms alone and together at one weight, by both rankings."""
    lines = [["terms", "ranked by", "weight", "TAR@1e-2", "to CE", "to KD", "to P + B"]]
    cross_entropy, kd = reported(rows, "ce"), reported(rows, "kd")
    for rank in ("student", "teacher"):
        base = reported(rows, f"PB-{rank}")
        for kind in plan.KINDS:
            found = reported(rows, f"{kind}-{rank}")
            if not found:
                continue
            lines.append(
                [
                    " + ".join(plan.NAMES[letter] for letter in kind),
                    rank,
                    f"{found[0]['weight']:g}",
                    spread([row[SCORE] for row in found]),
                    _against(found, cross_entropy),
                    _against(found, kd),
                    _against(found, base) if base else "",
                ]
            )
    return markdown(lines)


def tail_table(rows: list[Row]) -> str:
    """Where each student stands to the teacher's group, on test photographs."""
    lines = [["", "ranked by", "student's mass outside", "strongest wrong class outside"]]
    outside = spread([row["tail_teacher"] for row in where(rows, stage="teacher")])
    lines.append(["teacher", "", outside, ""])
    for name in plan.MAIN + plan.ablation("student") + plan.ablation("teacher"):
        found = reported(rows, name)
        if not found:
            continue
        cells = [spread([row[c] for row in found]) for c in ("tail_student", "rival_outside")]
        recipe = plan.RECIPES[name]
        has_ranking = name not in ("ce", "kd", "dkd")
        rank = recipe.arguments.get("rank_by", "teacher") if has_ranking else ""
        lines.append([recipe.label, rank, *cells])
    return markdown(lines)


def size_table(rows: list[Row]) -> str:
    """Students of several sizes, and of a longer training, at the settings of the middle one."""
    (teacher, *_), cells = where(rows, stage="teacher"), []
    columns = [c for c in COLUMNS if all(reported(rows, name, *c) for name in plan.SIZED)]
    for shape, longer in columns:
        (first, *_) = reported(rows, "ce", shape, longer)
        ratio = teacher["parameters"] / first["parameters"]
        cells += [f"1/{ratio:.0f}, {first['epochs']} epochs", "to CE"]
    lines = [["", *cells]]
    for name in plan.SIZED:
        cells = []
        for shape, longer in columns:
            found = reported(rows, name, shape, longer)
            cells.append(spread([row[SCORE] for row in found]))
            cells.append(_against(found, reported(rows, "ce", shape, longer)))
        lines.append([plan.RECIPES[name].label, *cells])
    return markdown(lines)


def tuning_table(rows: list[Row]) -> str:
    """Every try, the chosen one in bold."""
    lines = [["", "tries: validation TAR@1e-2", "bracketed"]]
    for name in plan.MAIN:
        found = tries(rows, name)
        done = [(entry, row["val_tar"]) for entry, row in found]
        chosen, cells = plan.best(done), []
        for entry, row in found:
            first = row["learning_rate"] if name == "ce" else row["weight"]
            usual = entry.second == plan.ladder(name).seconds[0]
            other = f"margin {entry.second:g}" if name == "ce" else f"warm-up {entry.second:g}"
            text = f"{first:g}{'' if usual else ', ' + other}: {100 * row['val_tar']:.1f}"
            cells.append(f"**{text}**" if entry == chosen else text)
        bracketed = "yes" if plan.is_bracketed(done) else "no"
        lines.append([plan.RECIPES[name].label, "; ".join(cells), bracketed])
    return markdown(lines)


TABLES = {
    "main": main_table,
    "tail": tail_table,
    "ablation": ablation_table,
    "sizes": size_table,
    "tuning": tuning_table,
}


def filled(text: str, rows: list[Row]) -> str:
    """The text with every `<!-- NAME -->` ... `<!-- end -->` holding the table of that name."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](rows)}\n<!-- end -->"

    names = "|".join(TABLES)
    return re.sub(rf"<!-- ({names}) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    build = argparse.ArgumentParser(
        prog="python -m examples.glyph_study.report", description=__doc__
    )
    build.add_argument("--runs", type=Path, default=RESULTS, metavar="FILE",
        help="what the sweep wrote (default: the committed results/runs.jsonl)")  # fmt: skip
    build.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into DIR")
    build.add_argument("--readme", type=Path, metavar="FILE",
        help="renew the tables between the marks of a Markdown file")  # fmt: skip
    options = build.parse_args(arguments)
    rows = load(options.runs)
    if not rows:
        build.error(f"--runs {options.runs} has no rows: run python -m examples.glyph_study.sweep")
    for table in TABLES.values():
        print(f"{table(rows)}\n")
    if options.figures:
        from .figures import save_all  # matplotlib only where it is needed

        for path in save_all(rows, options.figures):
            print(f"wrote {path}")
    if options.readme:
        options.readme.write_text(filled(options.readme.read_text(), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
