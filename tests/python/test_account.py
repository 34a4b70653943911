"""The account of inputs and regressions, and the watchdog over every test."""

import subprocess
import sys
from pathlib import Path

import pytest

import account
from rows import INPUTS, REGRESSIONS

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "cpp"


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=110
    )


def test_every_input_and_regression_is_answered_for():
    # As make inputs does; without a build's GoogleTest programs, of the Python tests alone.
    gtest = ["--gtest", BUILD] if any(BUILD.glob("gkd_*_test")) else []
    done = run(HERE / "account.py", *gtest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "68 of 68 inputs" in done.stdout and "32 of 32 regressions" in done.stdout
    assert list(INPUTS) == list(range(1, 69)) and list(REGRESSIONS) == list(range(1, 33))


class Test:
    """Stands for a collected test."""

    nodeid = "test_it"

    def __init__(self, *marks):
        self.marks = marks

    def get_closest_marker(self, name):
        return name in self.marks


def test_the_account_finds_what_is_wrong(capsys):
    table = {n: row._replace(reason="") for n, row in INPUTS.items() if n <= 2}
    whole = {1: [Test()], 2: [Test("cuda")]}
    assert account.account("inputs", table, whole) == []
    assert "2 of 2 inputs\n  by tests that need a CUDA device: 2" in capsys.readouterr().out
    assert "neither" in account.account("inputs", table, {1: [Test()]})[0]
    assert "no such input: 3" in account.account("inputs", table, {**whole, 3: [Test()]})[0]
    reasoned = {**table, 2: table[2]._replace(reason="because")}
    assert account.account("inputs", reasoned, {1: [Test()]}) == []
    assert "has a reason, yet" in account.account("inputs", reasoned, whole)[0]
    names = [f"Inputs.Row{n}" for n, row in INPUTS.items() if row.cpp]
    assert account.account_cpp(names) == []
    assert "no test of input" in account.account_cpp(names[1:])[0]
    assert "knows of no" in account.account_cpp([*names, "Inputs.Row4"])[0]
    assert "which is none" in account.account_cpp([*names, "Index.Regression99"])[0]


@pytest.mark.regression("cub#459")
def test_a_test_that_hangs_ends_the_run(tmp_path):
    hanging = tmp_path / "test_hanging.py"
    hanging.write_text("import time\n\n\ndef test_it():\n    time.sleep(100)\n")
    settings = HERE.parents[1] / "pyproject.toml"
    options = [
        "-o",
        "faulthandler_timeout=1",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
    ]
    done = run("-m", "pytest", "-q", "-c", settings, "--rootdir", tmp_path, *options, hanging)
    assert done.returncode == 1 and "Timeout (0:00:01)!" in done.stderr
    assert "test_hanging.py" in done.stderr
