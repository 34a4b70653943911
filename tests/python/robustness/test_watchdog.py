"""The watchdog over every test, which pyproject.toml sets."""

import subprocess
import sys
from pathlib import Path

SETTINGS = Path(__file__).resolve().parents[3] / "pyproject.toml"


def test_a_test_that_hangs_ends_the_run(tmp_path):
    hanging = tmp_path / "test_hanging.py"
    hanging.write_text("import time\n\n\ndef test_it():\n    time.sleep(100)\n")
    options = [
        "-o",
        "faulthandler_timeout=1",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-c", SETTINGS, "--rootdir", tmp_path]
    done = subprocess.run(
        [*command, *options, hanging], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 1 and "Timeout (0:00:01)!" in done.stderr
    assert "test_hanging.py" in done.stderr
