"""Builds gkd with CMake, which holds the list of sources; nothing about the build is known here.

GKD_CMAKE_ARGS passes options to CMake (-DGKD_WITH_CUDA=OFF: for the CPU alone), MAX_JOBS limits the
compilers that run at once, and GKD_BUILD_DIR names a build tree to take the libraries from: what is
built there already is not compiled a second time (default: build/python).
"""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TREE = ROOT / os.environ.get("GKD_BUILD_DIR", "build/python")
OPTIONS = os.environ.get("GKD_CMAKE_ARGS", "").split()
VERSION = (ROOT / "VERSION").read_text().strip()
OLDEST = re.search(r"GKD_TORCH_OLDEST ([\d.]+)", (ROOT / "cmake/gkdTorch.cmake").read_text()).group(
    1
)
CMAKE = re.search(r"VERSION ([\d.]+)\)", (ROOT / "CMakeLists.txt").read_text()).group(1)
AGAIN = "`pip install --no-build-isolation .`"


def torch_version() -> str:
    """The torch that libgkd.so will be built against; ends the process where there is none."""
    try:
        return version("torch")
    except (
        PackageNotFoundError
    ):  # said before pip fetches gigabytes of a torch it cannot build with
        sys.exit(
            "gkd is built against the torch of your environment, and this build sees none: "
            f'`pip install torch "setuptools>=77" wheel`, then {AGAIN}'
        )


def check_tools() -> None:
    """Ends the process in one sentence where a program is missing that the build needs."""
    numbers = [int(part) for part in CMAKE.split(".")]
    try:
        said = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout
    except OSError:
        said = ""
    found = re.search(r"version (\d+)\.(\d+)", said)
    if not found or [int(part) for part in found.groups()] < numbers:
        state = f"version {found.group(1)}.{found.group(2)}" if found else "none"
        sys.exit(
            f"gkd needs CMake {CMAKE} or newer and found {state}: `pip install cmake`, then {AGAIN}"
        )
    compiler = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in compiler[:1] or ("c++", "g++", "clang++")):
        sys.exit(
            "gkd needs a C++ compiler and found none: `apt install g++` (Debian, Ubuntu), `dnf "
            f"install gcc-c++` (Red Hat) or `conda install cxx-compiler`, then {AGAIN}"
        )


class CMakeBuild(build_ext):
    """Runs CMake and puts libraries, headers and CMake files beside the Python files."""

    def run(self) -> None:
        torch_version()
        check_tools()
        package = ROOT / "python" / "gkd" if self.inplace else Path(self.build_lib, "gkd").resolve()
        options = [f"-DPython3_EXECUTABLE={sys.executable}"]
        if "GKD_BUILD_DIR" not in os.environ:  # a tree that the user keeps has settings of its own;
            # in this one CMake would remember those of the last build
            options += ["-DGKD_BUILD_TESTS=OFF", "-DGKD_WITH_CUDA=AUTO", "-DGKD_BUILD_PYTHON=ON"]
        options += OPTIONS
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        # By way of a folder of its own: a build tree may keep its libraries in the package already,
        # and CMake does not install a file onto itself.
        stage = Path(self.build_temp, "install").resolve()
        shutil.rmtree(stage, ignore_errors=True)
        for command in (
            ["-S", ROOT, "-B", TREE, *options],
            ["--build", TREE, "--parallel", jobs, "--target", "package"],
            ["--install", TREE, "--strip", "--component", "python", "--prefix", stage],
        ):
            if subprocess.call(["cmake", *map(str, command)]):
                sys.exit("gkd was not built: CMake's last message, above, says why")
        shutil.copytree(stage, package, dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """A wheel without _C, whose only Python-dependent file it is, fits every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        bound = any(Path(self.bdist_dir, "gkd").glob("_C*"))
        return tag if bound else ("py3", "none", tag[2])


def versions() -> dict[str, object]:
    """The version and what it requires; built for one torch, or a source for any."""
    if not {"bdist_wheel", "dist_info", "editable_wheel"} & set(sys.argv):
        return {"version": VERSION, "install_requires": [f"torch>={OLDEST}"]}
    torch = torch_version()
    if "GKD_BUILD_DIR" in os.environ and (TREE / "_build.py").exists():
        built = runpy.run_path(str(TREE / "_build.py"))
        cuda = built["cuda_version"] and built["torch_cuda_version"]
    elif "-DGKD_WITH_CUDA=OFF" in OPTIONS:
        cuda = ""
    else:
        cuda = importlib.import_module("torch.version").cuda
    tag = runpy.run_path(str(ROOT / "python/gkd/_wheel_tag.py"))
    required = f"torch=={tag['minor'](torch)}.*"
    return {"version": f"{VERSION}+{tag['wheel_tag'](torch, cuda)}", "install_requires": [required]}


setup(
    ext_modules=[Extension("gkd._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    **versions(),
)
