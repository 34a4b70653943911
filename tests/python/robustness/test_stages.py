"""Scripts of many stages (gpu-check, sanitize) report what fails, hangs or is missing."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
stages="{picks}" out="{out}" summary="{out}/summary.txt" limit=2 failed=0 where="[card, commit]"
source tests/sanitize/stages.sh
stage good echo "3 passed, 1 skipped in 0.10s"
stage bad-one sh -c 'echo "1 failed, 2 passed in 0.10s"; exit 3'
stage bad-hangs sh -c 'trap "" TERM; while :; do sleep 0.1; done'
exit "$failed"
"""


def run(out, picks):
    script = SCRIPT.format(picks=picks, out=out)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    return done.returncode, (out / "summary.txt").read_text().splitlines()


def test_a_failure_and_a_hang_are_named_and_fail_the_script(tmp_path):
    code, (good, bad, hangs) = run(tmp_path, "good bad")
    assert code == 1
    assert good.startswith("good: exit 0") and good.endswith("3 passed, 1 skipped in 0.10s")
    assert bad.startswith("bad-one: FAILED, exit 3") and "1 failed, 2 passed" in bad
    # Whole seconds by the shell's clock: a stop after 2 s may read as more.
    stopped = r"bad-hangs: FAILED, stopped by its limit after \d+ s \[card, commit\]"
    assert re.match(stopped, hangs)


def test_a_stage_alone_keeps_the_lines_of_the_others(tmp_path):
    (tmp_path / "summary.txt").write_text("good: FAILED, exit 1\nother: exit 0\n")
    code, lines = run(tmp_path, "good")
    assert code == 0
    assert lines[0] == "other: exit 0"
    assert lines[1].startswith("good: exit 0") and len(lines) == 2


@pytest.mark.parametrize(
    ("command", "caught"),
    [
        ("sh -c 'echo Race reported; exit 9'", True),
        ("sh -c 'echo Race reported'", False),
        ("sh -c 'exit 9'", False),
    ],
    ids=["caught", "no exit status", "no words"],
)
def test_a_planted_error_must_be_caught_in_words(command, caught):
    script = f"source tests/sanitize/stages.sh; caught 'Race reported' {command}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode == 0) == caught


def test_gpu_check_refuses_a_stage_that_it_does_not_have(tmp_path):
    command = ["bash", "tests/gpu_check.sh", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "STAGES": "pyhton"},
    )
    assert done.returncode == 2 and "no stage pyhton" in done.stdout
