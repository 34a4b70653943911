"""Builds gkd with CMake, which holds the list of sources; nothing about the build is known here.

GKD_CMAKE_ARGS passes options to CMake, MAX_JOBS limits the compilers that run at once, and
GKD_BUILD_DIR names a build tree to take the libraries from: what is built there already is not
compiled a second time (default: build/python).
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and puts libraries, headers and CMake files beside the Python files."""

    def run(self) -> None:
        try:
            import torch  # noqa: F401
        except ImportError:
            sys.exit("gkd needs torch: install it, then use `pip install --no-build-isolation .`")
        given = os.environ.get("GKD_BUILD_DIR")
        build = str(ROOT / (given or "build/python"))
        package = ROOT / "python" / "gkd" if self.inplace else Path(self.build_lib, "gkd").resolve()
        options = [f"-DPython3_EXECUTABLE={sys.executable}"]
        if not given:  # a tree that the user keeps has settings of its own
            options.append("-DGKD_BUILD_TESTS=OFF")
        options += os.environ.get("GKD_CMAKE_ARGS", "").split()
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", build, *options])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(
            ["cmake", "--build", build, "--parallel", jobs, "--target", "gkd", "_C"]
        )
        # By way of a folder of its own: a build tree may keep its libraries in the package already,
        # and CMake does not install a file onto itself.
        stage = Path(self.build_temp, "install").resolve()
        shutil.rmtree(stage, ignore_errors=True)
        subprocess.check_call(
            ["cmake", "--install", build, "--strip", "--component", "python", "--prefix", stage]
        )
        shutil.copytree(stage, package, dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        return []


def requirements() -> list[str]:
    """The very torch that libgkd.so is built against, where there is one."""
    try:
        built = version("torch").split("+")[0]
    except PackageNotFoundError:
        return ["torch"]
    return [f"torch=={built}"]


setup(
    ext_modules=[Extension("gkd._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=requirements(),
)
