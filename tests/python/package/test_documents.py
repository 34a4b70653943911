"""What the documents name and claim is so: links, commands' options, figures, tables of results."""

import contextlib
import csv
import importlib.util
import inspect
import io
import re
import runpy
import sys

import pytest

import gkd
from markdown import PAGES, ROOT, code_of, links, name_of

# Not on every machine that has torch and a GPU.
images = pytest.importorskip("matplotlib.testing.compare")

MODULE = re.compile(r"(?:python3?|torchrun)\b[^\n]*? -m ([\w.]+)([^\n#|&]*)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for link in links(page):
        assert (page.parent / link).exists(), f"{name_of(page)} links to {link}"


def test_modules_and_their_options_exist(monkeypatch):
    """`python -m MODULE --OPTION` in a page: MODULE --help knows the option."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    named = {}
    for page in PAGES:
        for module, rest in MODULE.findall(code_of(page)):
            options = re.findall(r"(?:^|(?<=\s))--[a-z][\w-]*", rest)
            named.setdefault(module, {}).update(dict.fromkeys(options, name_of(page)))
    assert {"gkd.info", "examples.distributed"} <= set(named)
    for module, options in named.items():
        assert importlib.util.find_spec(module), f"there is no module {module}"
        if module.split(".")[0] not in ("gkd", "benchmarks", "examples"):
            continue
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        for option, where in options.items():
            assert option in out.getvalue(), f"{where}: {module} has no option {option}"


def test_figures_are_those_of_the_tables(tmp_path, monkeypatch):
    """Each is what its script draws from the committed CSVs."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "figures"))  # as for a program's own folder
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["figures", "--output", str(tmp_path)])
    with monkeypatch.context():
        runpy.run_module("benchmarks.figures", run_name="__main__")
        for script in ("concept", "group_sizes", "regimes"):
            runpy.run_path(f"docs/figures/{script}.py", run_name="__main__")
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 6
    for figure in drawn:
        committed = ROOT / "docs" / "figures" / figure.name
        # Another build of the font renderer may move an edge by a shade.
        difference = images.compare_images(str(committed), str(figure), tol=3)
        assert difference is None, f"run python -m benchmarks.figures: {difference}"


def test_drawn_figures_are_shown():
    shown = {name_of((page.parent / link).resolve()) for page in PAGES for link in links(page)}
    for figure in ROOT.glob("docs/figures/*.png"):
        assert name_of(figure) in shown, f"no page shows {name_of(figure)}"


def test_one_version():
    version = (ROOT / "VERSION").read_text().strip()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_option_is_documented():
    """Each keyword of gkd.loss has its place in the page about settings."""
    page = ROOT / "docs" / "settings.md"
    for name, parameter in inspect.signature(gkd.loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"`{name}" in page.read_text(), name


def lines_of(name, **wanted):
    """Lines of a CSV of results that have the wanted values."""
    with (ROOT / "benchmarks" / "results" / name).open() as file:
        return [x for x in csv.DictReader(file) if all(x[k] == v for k, v in wanted.items())]


def rows_that_begin(start):
    """The cells after the first, of every table row of any page that begins so."""
    found = []
    for page in PAGES:
        rows = [x for x in page.read_text().splitlines() if x.startswith(f"| {start}")]
        found += [[cell.strip() for cell in row.strip("|").split("|")[1:]] for row in rows]
    assert found, f"no page has a table row of {start}"
    return found


#: Rows of the tables of speed: contender, column, format.
SPEED = {
    "GKD as usually written (sort, mask), eager": ("user_eager", "ratio_to_gkd_median", ".1f"),
    "the same, torch.compile": ("user_compiled", "ratio_to_gkd_median", ".1f"),
    "plain KD (`F.kl_div`), eager": ("kd_eager", "ratio_to_gkd_median", ".1f"),
    "plain KD, torch.compile": ("kd_compiled", "ratio_to_gkd_median", ".1f"),
    "a copy of the same bytes": ("copy", "ratio_to_gkd_median", ".2f"),
    "gkd itself, ns per class": ("gkd", "ns_per_class_median", ".1f"),
}


@pytest.mark.parametrize("row", SPEED)
def test_table_of_speed_is_the_csv(row):
    contender, column, shape = SPEED[row]
    wanted = {"dtype": "float32", "stage": "forward_backward", "contender": contender}
    found = lines_of("cpu_amd_epyc_2_cores_compiled.csv", **wanted)
    order = [("85742", "flat"), ("85742", "peaked"), ("360232", "flat"), ("360232", "peaked")]
    by_place = {(x["classes"], x["distribution"]): float(x[column]) for x in found}
    measured = [f"{by_place[place]:{shape}}" for place in order]
    assert measured in rows_that_begin(row)


@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_tables_of_growth_are_the_csv(kind):
    text = (ROOT / "docs" / "performance.md").read_text()
    table = text[text.index(f"| {kind} logits |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 5
    for row in table:
        name, *cells = (cell.strip(" `") for cell in row.strip("|").split("|"))
        wanted = {"dtype": "float32", "stage": "forward_backward", "distribution": kind}
        found = lines_of("cpu_amd_epyc_2_cores.csv", contender=name, **wanted)
        found.sort(key=lambda x: int(x["classes"]))
        assert cells == [f"{float(x['ns_per_class_median']):.1f}" for x in found], name


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_table_of_errors_is_the_csv(dtype):
    found = lines_of("accuracy_cpu.csv", dtype=dtype)
    assert len(found) == 120
    text = (ROOT / "docs" / "numerics.md").read_text()
    measured = text[text.index("## What was measured") :]
    worst = [max(float(x[k]) for x in found) for k in ("loss", "row_loss", "gradient")]
    assert f"| {dtype} | " + " | ".join(f"{x:.1e}" for x in worst) + " |" in measured
