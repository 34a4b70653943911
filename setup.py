"""Builds gkd with CMake, which holds the list of sources; nothing about the build is known here."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and puts libgkd.so and _C beside the Python files."""

    def run(self) -> None:
        try:
            import torch  # noqa: F401
        except ImportError:
            sys.exit("gkd needs torch: install it, then use `pip install --no-build-isolation .`")
        build = ROOT / "build" / "python"
        package = Path(self.build_lib) / "gkd" if not self.inplace else ROOT / "python" / "gkd"
        options = [
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package.resolve()}",
            "-DGKD_BUILD_TESTS=OFF",
            *os.environ.get("GKD_CMAKE_ARGS", "").split(),
        ]
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *options])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "--build", str(build), "--parallel", jobs])

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("gkd._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
