"""Python in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gkd

PACKAGE = Path(gkd.__file__).parent


def python(*arguments, exits=0, cwd=None, **variables):
    """What it prints, and its errors; where it hangs, it and its children come to an end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **variables},
        cwd=cwd,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = process.communicate(timeout=110)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a process hangs")
    assert process.returncode == exits, out + errors
    return out, errors
