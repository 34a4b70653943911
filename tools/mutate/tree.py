"""A copy of the tracked files with a build of its own, where mutants live and tests run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .mutant import KERNEL_PROGRAM, Killer

#: Compares the mutants with the sources: it would kill every one of them.
OWN_TEST = "tests/python/robustness/test_mutants.py"


@dataclass(frozen=True)
class Outcome:
    """What a killer made of a tree. `test`: the first that failed, or what else happened."""

    killed: bool
    test: str = ""
    error: str = ""  #: neither passed nor failed: nothing was tested


def _first_failure(killer: Killer, output: str, code: int) -> str:
    """The test; with the signal's name where it died of one, not of a failed expectation."""
    pattern = (
        r"^(?:FAILED|ERROR) (.+?)(?: - |$)" if killer.program is None else r"^\[ RUN      \] (\S+)"
    )
    found = re.findall(pattern, output, re.MULTILINE)
    name = killer.text.split()[0] if not found else found[0 if killer.program is None else -1]
    if code > 0 or re.search(r": Failure$", output, re.MULTILINE):
        return name
    return f"{name}: {signal.Signals(-code).name}"


def _passed(killer: Killer, output: str) -> int:
    pattern = r"(\d+) passed" if killer.program is None else r"\[  PASSED  \] (\d+) test"
    found = re.search(pattern, output)
    return int(found.group(1)) if found else 0


@dataclass
class Tree:
    """`source` is the working tree, which is only read; `root` the copy; `kernels`: with CUDA."""

    source: Path
    root: Path
    kernels: bool
    jobs: int
    runners: list[list[str]] = field(default_factory=lambda: [[]])  #: before a kernel program
    _configured: bool = False

    def sync(self) -> None:
        """Makes the copy equal to the working tree. What is equal keeps its time of change, so
        that a build compiles what differs alone: the last mutant, and the next one."""
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=self.source, check=True, capture_output=True
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            source, copy = self.source / name, self.root / name
            if not source.is_file():  # deleted, and git not told yet
                copy.unlink(missing_ok=True)
                continue
            content = source.read_bytes()
            if not copy.is_file() or copy.read_bytes() != content:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
                copy.chmod(source.stat().st_mode)

    def _cmake(self, *arguments: str) -> str:
        """ "" or what went wrong."""
        done = subprocess.run(["cmake", *arguments], cwd=self.root, capture_output=True, text=True)
        return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]

    def build(self, killer: Killer) -> str:
        """Builds what a killer runs; "" or the compiler's words."""
        if not self._configured:
            options = shlex.split(os.environ.get("GKD_CMAKE_ARGS", ""))
            if self.kernels:
                options += ["-DGKD_BUILD_PYTHON=OFF"]
            else:
                library = self.root / "python" / "gkd"
                options += ["-DGKD_WITH_CUDA=OFF", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library}"]
            options += [f"-DPython3_EXECUTABLE={sys.executable}"]
            fault = self._cmake("-S", ".", "-B", "build/cpp", *options)
            if fault:
                return fault
            self._configured = True
        targets = [killer.program] if killer.program else ["package"]
        return self._cmake(
            "--build", "build/cpp", "--parallel", str(self.jobs), "--target", *targets
        )

    def run(self, killer: Killer, limit: float) -> Outcome:
        """Runs a killer that is built, kernels under every runner until one of them fails."""
        for runner in self.runners if killer.program == KERNEL_PROGRAM else [[]]:
            outcome = self._run_once(killer, runner, limit)
            if outcome.killed or outcome.error:
                return outcome
        return Outcome(killed=False)

    def _run_once(self, killer: Killer, runner: list[str], limit: float) -> Outcome:
        if killer.program is None:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
            command += [f"--ignore={OWN_TEST}", *killer.arguments]
        else:
            # Dies at the first failure, in the test that runs: the rest would say nothing new.
            command = [*runner, f"build/cpp/{killer.program}", "--gtest_throw_on_failure"]
            command += killer.arguments
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root / "python"),
            # A module compiled within a second of its mutation would pass for the mutant's.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the ranks and workers it has started
            process.communicate()
            return Outcome(killed=True, test=f"{killer.text.split()[0]}: hangs")
        code = process.returncode
        if code == 0:
            passed = _passed(killer, output)
            return Outcome(False, error="" if passed else f"no test passed: {killer.text}")
        if killer.program or code < 0 or code == 1:
            return Outcome(killed=True, test=_first_failure(killer, output, code))
        return Outcome(False, error=f"exit status {code} of {killer.text}:\n{output[-3000:]}")

    def timed(self, killer: Killer, limit: float) -> tuple[Outcome, float]:
        begin = time.monotonic()
        outcome = self.run(killer, limit)
        return outcome, time.monotonic() - begin
