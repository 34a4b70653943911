"""Installs of the existing build tree, for the tests of what a C++ project gets."""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import gkd

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / os.environ.get("GKD_BUILD_DIR", "build/cpp")
TORCH = Path(torch.__file__).parent
PACKAGE = Path(gkd.__file__).parent


def run(*command, fails: bool = False, **options) -> str:
    """The command's output; an AssertionError shows it where the exit status surprises."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    done = subprocess.run([str(part) for part in command], check=False, timeout=600, **options)
    assert (done.returncode != 0) == fails, f"exit {done.returncode}: {command}\n{done.stdout}"
    return done.stdout


@dataclass(frozen=True)
class Install:
    """One of the two layouts that find_package(gkd) works with."""

    prefix: Path  #: what CMAKE_PREFIX_PATH has to hold
    library: Path
    cmake: Path  #: gkdConfig.cmake's folder
    include: Path


def cpp_package(folder: Path) -> Install:
    """`cmake --install`, moved afterwards: an installed package does not know where it was made."""
    run("cmake", "--install", BUILD, "--prefix", folder / "made")
    prefix = (folder / "made").rename(folder / "moved")
    return Install(prefix, prefix / "lib/libgkd.so", prefix / "lib/cmake/gkd", prefix / "include")


def python_package(folder: Path) -> Install:
    """The package as pip lays it out, beside torch."""
    package = folder / "gkd"
    run("cmake", "--install", BUILD, "--component", "python", "--prefix", package)
    for file in PACKAGE.glob("*.py"):
        shutil.copy(file, package)
    for beside in ("torch", "nvidia"):
        if (TORCH.parent / beside).exists():
            (folder / beside).symlink_to(TORCH.parent / beside)
    spec = importlib.util.spec_from_file_location("installed_utils", package / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    prefix = Path(utils.cmake_prefix_path)
    return Install(prefix, package / "libgkd.so", prefix / "gkd", package / "include")


def build(source: Path, folder: Path, prefixes: list[Path], *targets: str) -> Path:
    """Configures and builds a project that knows nothing but find_package(gkd)."""
    run("cmake", "-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}")
    run("cmake", "--build", folder, "--parallel", "2", *(f"--target={name}" for name in targets))
    return folder
