"""What stops an installation ends in one sentence that names the next command."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

from gkd import _build, functional
from gkd._settings import DEFAULT_THRESHOLD, DEFAULTS

_load = sys.modules["gkd._load"]
ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on PATH")


def says(command, **env: str | None) -> str:
    """What a command that fails prints, on one line; a variable that is None is unset."""
    merged = {k: v for k, v in (os.environ | env).items() if v is not None}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=merged, capture_output=True, text=True
    )
    assert done.returncode != 0, done.stdout
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def cmake(tmp_path):
    """Configures gkd for a torch that consists of its version and its CUDA."""

    def call(*options: str, version: str, cuda: str | None, **env: str | None) -> str:
        fake = tmp_path / "torch"
        files = fake / "share" / "cmake" / "Torch"
        files.mkdir(parents=True)
        (files / "TorchConfigVersion.cmake").write_text(f'set(PACKAGE_VERSION "{version}")\n')
        (fake / "__init__.py").write_text(
            "from types import SimpleNamespace\n"
            f"utils = SimpleNamespace(cmake_prefix_path={str(files.parent)!r})\n"
            f"version = SimpleNamespace(cuda={cuda!r})\n"
        )
        command = ["cmake", "-S", ROOT, "-B", tmp_path / "build", *options]
        command.append(f"-DPython3_EXECUTABLE={sys.executable}")
        return says(command, PYTHONPATH=str(tmp_path), **env)

    return call


def nvcc(folder: Path, release: str) -> str:
    """A program that says it is the nvcc of a release."""
    program = folder / "nvcc"
    program.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
    program.chmod(0o755)
    return str(program)


def test_a_torch_that_is_too_old(cmake):
    said = cmake(version="2.6.0", cuda=None)
    assert "gkd supports torch 2.8 and newer, and this is torch 2.6.0: `pip install" in said


def test_no_toolkit(cmake, tmp_path):
    said = cmake(version="2.15.0", cuda="13.2", CUDACXX=str(tmp_path / "none"))
    assert "built with CUDA 13.2, but no nvcc was found" in said
    assert '`pip install "cuda-toolkit[nvcc,cccl]==13.2.*"`' in said
    assert "or build for the CPU alone with GKD_CMAKE_ARGS=-DGKD_WITH_CUDA=OFF" in said


def test_the_toolkit_of_another_cuda(cmake, tmp_path):
    said = cmake(version="2.9.1", cuda="12.8", CUDACXX=nvcc(tmp_path, "13.0"))
    assert "built with CUDA 12.8, but" in said
    assert "is of CUDA 13.0: put the nvcc of a CUDA 12 toolkit on PATH or in CUDACXX" in said


def test_cuda_asked_of_a_torch_without(cmake):
    said = cmake("-DGKD_WITH_CUDA=ON", version="2.15.0", cuda=None)
    assert "GKD_WITH_CUDA=ON, but this torch was built without CUDA" in said


def test_an_unknown_architecture(cmake, tmp_path):
    nvcc(tmp_path, "13.0")
    said = cmake(
        version="2.11.0", cuda="13.0", CUDACXX=str(tmp_path / "nvcc"), TORCH_CUDA_ARCH_LIST="Hopper"
    )
    assert "TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0;9.0+PTX, got Hopper" in said


SETUP = [sys.executable, "setup.py", "-q"]


def test_no_torch(tmp_path):
    """As in an isolated build, where pip has put setuptools alone."""
    hide = (
        "import sys, runpy; sys.path = [p for p in sys.path if 'site-packages' not in p] + [{!r}]"
    )
    for file in Path(setuptools.__file__).parents[1].glob("setuptools*"):
        (tmp_path / file.name).symlink_to(file)
    run = "; sys.argv = ['setup.py', 'dist_info']; runpy.run_path('setup.py', run_name='__main__')"
    said = says([sys.executable, "-c", hide.format(str(tmp_path)) + run], PYTHONPATH=None)
    assert 'this build sees none: `pip install torch "setuptools>=77" wheel`, then' in said


def test_no_setuptools():
    said = says([sys.executable, "-S", ROOT / "tools" / "build_backend.py"], PYTHONPATH=None)
    assert 'gkd needs setuptools 77 or newer and found none: `pip install "setuptools>=77"' in said


def test_no_cmake_or_an_old_one(tmp_path):
    said = says([*SETUP, "build_ext", "-b", tmp_path], PATH=str(tmp_path))
    assert "and found none: `pip install cmake`" in said
    old = tmp_path / "cmake"
    old.write_text("#!/bin/sh\necho cmake version 3.16.3\n")
    old.chmod(0o755)
    said = says([*SETUP, "build_ext", "-b", tmp_path], PATH=str(tmp_path))
    assert "or newer and found version 3.16: `pip install cmake`" in said


def test_no_compiler(tmp_path):
    (tmp_path / "cmake").symlink_to(shutil.which("cmake"))
    said = says([*SETUP, "build_ext", "-b", tmp_path], PATH=str(tmp_path), CXX=None)
    assert "gkd needs a C++ compiler and found none: `apt install g++`" in said


def test_importing_under_another_torch():
    with pytest.raises(
        ImportError, match=r"torch 3\.1\.0 is installed: install the wheel gkd-.*\+pt3\.1cpu, or"
    ):
        _load._check_built_for("3.1.0", None)
    _load._check_built_for(torch.__version__, torch.version.cuda)


def test_importing_under_another_cuda(monkeypatch):
    monkeypatch.setattr(_build, "cuda_version", "12.8.93")
    monkeypatch.setattr(_build, "torch_cuda_version", "12.8")
    with pytest.raises(ImportError, match=r"with CUDA 12\.8 but .* with CUDA 14\.0 is.*cu140"):
        _load._check_built_for(_build.torch_version, "14.0")
    _load._check_built_for(_build.torch_version, "12.9")
    _load._check_built_for(_build.torch_version, None)


def test_the_defaults_are_those_of_the_c_plus_plus_header():
    bound = pytest.importorskip("gkd._C", reason="built without Python's headers")
    assert bound.DEFAULTS == DEFAULTS
    assert bound.DEFAULT_THRESHOLD == DEFAULT_THRESHOLD
    keywords = functional.loss.__kwdefaults__
    assert {name: keywords[name] for name in DEFAULTS} == DEFAULTS


def test_the_documents_name_the_supported_versions():
    declared = (ROOT / "cmake" / "gkdTorch.cmake").read_text() + (
        ROOT / "CMakeLists.txt"
    ).read_text()
    oldest, newest, cmake = re.findall(
        r"(?:TORCH_OLDEST|TORCH_NEWEST|minimum_required\(VERSION) ([\d.]+)", declared
    )
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "install.md").read_text()
    assert f"torch {oldest} to {newest}" in readme
    assert f"| torch | {oldest} to {newest} |" in page
    assert f"CMake {cmake}" in readme
    assert f"| CMake | {cmake} or newer |" in page
    matrix = (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    assert f"torch: {oldest}.0," in matrix
    assert f"torch: {newest}.0," in matrix
