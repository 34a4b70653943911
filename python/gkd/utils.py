"""Where C++ projects find gkd.

``cmake_prefix_path`` is the folder to put in ``CMAKE_PREFIX_PATH``, as
``torch.utils.cmake_prefix_path`` is torch's; ``find_package(gkd)`` then makes ``gkd::gkd``, with the
headers and the library of this Python package, and torch:

    cmake -S . -B build -DCMAKE_PREFIX_PATH="$(python -c 'import gkd; print(gkd.utils.cmake_prefix_path)')"
"""  # noqa: E501

from pathlib import Path

__all__ = ["cmake_prefix_path"]

cmake_prefix_path: str  #: FileNotFoundError where the package was not installed


def __getattr__(name: str) -> str:
    if name != "cmake_prefix_path":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = Path(__file__).resolve().parent / "share" / "cmake"
    if not (folder / "gkd" / "gkdConfig.cmake").exists():
        raise FileNotFoundError(
            f"gkd's CMake files are made when it is installed, and {folder.parents[1]} is a source "
            "tree: run `pip install --no-build-isolation .`, or `cmake --install BUILD --prefix "
            "DIR` and put DIR in CMAKE_PREFIX_PATH"
        )
    return str(folder)
