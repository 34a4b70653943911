"""Each sanitizer of `make sanitize` catches the error that is planted for it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "sanitize" / "planted.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
ASAN = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The program compiled with some flags, once for each; skips where they cannot be linked."""
    programs = {}

    def build(flags):
        if COMPILER is None:
            pytest.skip("no C++ compiler")
        if flags not in programs:
            program = tmp_path_factory.mktemp("planted") / "planted"
            options = ["-std=c++17", "-g", "-O1", "-pthread", *flags.split()]
            command = [COMPILER, *options, str(SOURCE), "-o", str(program)]
            done = subprocess.run(command, capture_output=True, text=True)
            missing = "cannot find" in done.stderr or "unable to find library" in done.stderr
            if done.returncode and missing:
                pytest.skip(f"the compiler lacks the runtime of {flags}")
            assert done.returncode == 0, done.stderr
            programs[flags] = program
        return programs[flags]

    return build


def run(*command):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        (ASAN, "heap", "heap-buffer-overflow"),
        (ASAN, "signed", "signed integer overflow"),
        (ASAN, "float", "is outside the range of representable values"),
        ("-fsanitize=thread", "race", "data race"),
    ],
    ids=["asan", "ubsan-signed", "ubsan-float", "tsan"],
)
def test_planted_error_is_caught(planted, flags, kind, words):
    program = planted(flags)
    assert run(program, "none")[0] == 0
    code, said = run(program, kind)
    assert code != 0
    assert words in said


def test_valgrind_catches_an_uninitialised_read(planted):
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    memcheck = [valgrind, "-q", "--error-exitcode=9", planted("")]
    assert run(*memcheck, "none")[0] == 0
    code, said = run(*memcheck, "uninitialised")
    assert code == 9
    assert "depends on uninitialised value" in said
