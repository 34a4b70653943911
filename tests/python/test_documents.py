"""What the documents name exists: files, figures, commands, options; and their YAML is YAML."""

import contextlib
import importlib.util
import io
import re
import runpy
import subprocess
import sys

import matplotlib.testing.compare as images
import pytest
import yaml

import pages
from pages import PAGES, ROOT, code_of, links, name_of

WORKFLOWS = sorted(ROOT.glob(".github/**/*.yml"))
MAKE = re.compile(r"(?:^|\s)make ([a-z][a-z-]*)\b", re.MULTILINE)
MODULE = re.compile(r"(?:python3?|torchrun)\b[^\n]*? -m ([\w.]+)([^\n#|&]*)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for link in links(page):
        assert (page.parent / link).exists(), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_of_results_exist(page):
    # Names alone are of the benchmark's own folder.
    for name in re.findall(r"[\w/.-]*\w\.csv\b", code_of(page)):
        places = [ROOT / name, ROOT / "benchmarks" / "results" / name]
        assert any(place.exists() for place in places), f"{name_of(page)} names {name}"


def commands():
    """(where, code) of every page and workflow."""
    found = [(name_of(page), code_of(page)) for page in PAGES]
    return found + [(name_of(path), path.read_text()) for path in WORKFLOWS]


def test_make_targets_exist():
    named = {target: where for where, code in commands() for target in MAKE.findall(code)}
    assert {"demo", "test", "docs", "figures", "gpu-check"} <= set(named)
    for target, where in named.items():
        dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert dry.returncode == 0, f"{where}: make {target}: {dry.stderr}"


def help_of(module, monkeypatch):
    """What `python -m module --help` prints."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, module
    return out.getvalue()


def test_modules_and_their_options_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    named = {}
    for where, code in commands():
        for module, rest in MODULE.findall(code):
            options = set(re.findall(r"(?<=\s)--[a-z][\w-]*", rest))
            named.setdefault(module, {}).update(dict.fromkeys(options, where))
    assert {"gkd.info", "benchmarks", "benchmarks.figures", "examples.distributed"} <= set(named)
    for module, options in named.items():
        assert importlib.util.find_spec(module), f"there is no module {module}"
        if module.split(".")[0] not in ("gkd", "benchmarks", "examples"):
            continue
        text = help_of(module, monkeypatch)
        for option, where in options.items():
            assert option in text, f"{where}: {module} has no option {option}"


def test_figures_are_those_of_the_tables(tmp_path, monkeypatch):
    """make figures changes nothing: each figure is what its script draws from the committed CSVs."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["figures", "--output", str(tmp_path)])
    with monkeypatch.context():
        runpy.run_module("benchmarks.figures", run_name="__main__")
        for script in ("concept", "regimes"):
            runpy.run_path(f"docs/figures/{script}.py", run_name="__main__")
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 5
    for figure in drawn:
        committed = ROOT / "docs" / "figures" / figure.name
        # Another build of the font renderer may move an edge by a shade.
        difference = images.compare_images(str(committed), str(figure), tol=3)
        assert difference is None, f"run make figures: {difference}"


def test_drawn_figures_are_shown():
    shown = {name_of((page.parent / link).resolve()) for page in PAGES for link in links(page)}
    for figure in ROOT.glob("docs/figures/*.png"):
        assert name_of(figure) in shown, f"no page shows {name_of(figure)}"


def test_yaml():
    for path in [*WORKFLOWS, ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]:
        assert yaml.safe_load(path.read_text()), name_of(path)
    for path in ROOT.glob(".github/workflows/*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for job in jobs.values():
            assert job["runs-on"] and job["steps"]


def test_one_version():
    version = (ROOT / "VERSION").read_text().strip()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_every_option_is_documented():
    """Each keyword of gkd.loss has its place in the page about settings."""
    import inspect

    import gkd

    page = pages.ROOT / "docs" / "settings.md"
    for name, parameter in inspect.signature(gkd.loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"`{name}" in page.read_text(), name
