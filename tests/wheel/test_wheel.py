"""dist/gkd-*.whl (`make wheel`) in an environment that holds torch and nothing of this tree."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version as torch_version
from pathlib import Path

import environment
import pytest

import install_fixtures

ROOT = Path(__file__).resolve().parents[2]
# The operator, its registration with torch (opcheck, compile), and the module.
QUICK = ("loss/test_loss.py", "autograd/test_compile_and_export.py", "package/test_module.py")
HELPERS = ("conftest.py", *(f"support/{x}.py" for x in ("cases", "oracle", "processes")))


@pytest.fixture(scope="module")
def wheel():
    torch = ".".join(torch_version("torch").split(".")[:2])
    wheels = sorted((ROOT / "dist").glob(f"gkd-*+pt{torch}cu*.whl"))
    assert len(wheels) == 1, "run `make wheel`"
    return wheels[0]


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with torch, the tests' tools and the wheel."""
    made = environment.create(
        tmp_path_factory.mktemp("venv"), ["torch", "numpy", "pytest", "hypothesis"]
    )
    install = [sys.executable, "-m", "pip", "--python", made, "install", "-q", "--no-index"]
    subprocess.run([*install, wheel], check=True)  # with its requirements: torch has to be there
    return made


@pytest.fixture
def run(python, tmp_path):
    """Runs the environment's Python outside the source tree; returns what it prints."""
    hidden = ("PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if name not in hidden}

    def call(*arguments) -> str:
        command = [str(part) for part in (python, *arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_tags_and_version(wheel):
    version = (ROOT / "VERSION").read_text().strip()
    assert re.fullmatch(
        rf"gkd-{version}\+pt[\d.]+cu\d+-py3-none-manylinux_2_\d+_\w+\.whl", wheel.name
    )


def test_it_carries_the_package_and_no_stranger(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    libraries = {name for name in names if ".so" in name}
    assert libraries == {"gkd/libgkd.so"}
    python = ROOT / "python"
    sources = {str(file.relative_to(python)) for file in python.glob("gkd/**/*.py*")}
    sources = {name for name in sources if "__pycache__" not in name}
    headers = {f"gkd/include/gkd/{f.name}" for f in (ROOT / "csrc/include/gkd").iterdir()}
    assert sources | headers | {
        "gkd/py.typed",
        "gkd/_build.py",
        "gkd/share/cmake/gkd/gkdConfig.cmake",
    } <= set(names)


def test_the_source_distribution_is_complete(tmp_path):
    """All that is tracked, but the files that serve git and its hosts."""
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    tracked = {name for name in listed.stdout.decode().splitlines() if not name.startswith(".")}
    assert len(tracked) > 100
    assert not tracked - names


def test_it_is_not_inflated(wheel):
    """-Xfatbin=-compress=false leaves PTX as text in the library and doubles its size."""
    library = zipfile.ZipFile(wheel).read("gkd/libgkd.so")
    assert b"ld.param" not in library
    print(f"{wheel.stat().st_size:,} bytes, its library {len(library):,}")


def test_what_is_imported_is_the_wheel(run, python):
    code = """
import gkd, json, torch, sys
gkd.loss(torch.randn(64, 5000), torch.randn(64, 5000))
maps = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
files = {"gkd": gkd.__file__, "torch": torch.__file__, "maps": sorted(maps)}
print(json.dumps(files | {"version": gkd.__version__}))
"""
    found = json.loads(run("-c", code))
    home = python.parents[1]
    assert Path(found["gkd"]).is_relative_to(home)
    assert found["version"] == (ROOT / "VERSION").read_text().strip()
    (library,) = (path for path in found["maps"] if path.endswith("libgkd.so"))
    assert Path(library).is_relative_to(home)
    for single in ("libgomp", "libcudart", "libtorch_cpu"):
        assert len([path for path in found["maps"] if single in path]) <= 1, single
    # torch's own OpenMP runtime, where it carries one, and so its threads
    (openmp,) = (path for path in found["maps"] if "libgomp" in path)
    own = Path(found["torch"]).with_name("lib") / "libgomp.so.1"
    assert not own.exists() or own.samefile(openmp)


def test_nothing_else_is_needed(run):
    packages = run(
        "-c", "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"
    )
    assert {"gkd", "torch", "pytest"} <= set(packages.split())
    assert not {"matplotlib", "mypy", "ruff", "pip"} & set(packages.split())
    assert "library" in run("-m", "gkd.info")


def test_the_quick_tests_pass(run, tmp_path):
    for name in QUICK + HELPERS:
        shutil.copy(ROOT / "tests" / "python" / name, tmp_path)
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path)
    assert re.search(r"\d{2,} passed", out), out
    assert "failed" not in out


def test_find_package_finds_it(run, tmp_path):
    """examples/cpp's training program, compiled, linked and run against the wheel."""
    prefix = run("-c", "import gkd; print(gkd.utils.cmake_prefix_path)").strip()
    folder = install_fixtures.build(
        ROOT / "examples" / "cpp", tmp_path / "build", [prefix], "train"
    )
    glyphs = tmp_path / "glyphs.pt"
    small = ["--identities", "70", "--image-size", "16", "--views", "2", "--quiet"]
    module = [sys.executable, "-m", "examples.glyphs.export", "--out", glyphs, *small]
    env = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    subprocess.run(module, check=True, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    out = install_fixtures.run(folder / "train", "--data", glyphs, "--no-labels")
    assert "accuracy" in out
