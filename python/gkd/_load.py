"""Loads the operators from the library beside this file, and from nowhere else."""

import ctypes
import os
from pathlib import Path

import torch

from ._wheel_tag import minor, wheel_tag

try:
    from . import _build
except ImportError:
    raise ImportError("gkd is not built: run `pip install --no-build-isolation .`") from None


def library_path() -> Path:
    """Where libgkd.so has to be: beside this file."""
    return Path(__file__).resolve().parent / "libgkd.so"


def _is_loaded(library: Path) -> bool:
    """Whether this very file is in the process, by any path and any loader."""
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _check_only_copy(library: Path) -> None:
    """torch registers a namespace once, and ends the process where a second library tries."""
    if not hasattr(torch.ops.gkd, "loss") or _is_loaded(library):
        return
    known = [path for path in torch.ops.loaded_libraries if Path(path).name == library.name]
    raise ImportError(
        f"gkd is loaded already, from {known[0] if known else 'another library'}, and a process "
        f"holds one copy; the second is {library}: uninstall one, or take it off sys.path"
    )


def _check_built_for(torch_version: str, cuda_version: str | None) -> None:
    """LibTorch keeps its binary interface within a minor version; CUDA's runtime within a major."""
    built, found = f"torch {_build.torch_version}", f"torch {torch_version}"
    fits = minor(_build.torch_version) == minor(torch_version)
    if fits and _build.cuda_version and cuda_version:
        built += f" with CUDA {_build.torch_cuda_version}"
        found += f" with CUDA {cuda_version}"
        fits = _build.cuda_version.split(".")[0] == cuda_version.split(".")[0]
    if not fits:
        tag = wheel_tag(torch_version, cuda_version)
        raise ImportError(
            f"gkd was built for {built} but {found} is installed: install the wheel "
            f"gkd-{_build.version}+{tag}, or rebuild with `pip install --no-build-isolation "
            "--force-reinstall --no-deps .`"
        )


def load() -> None:
    """Register torch.ops.gkd; ImportError in one sentence when the build is missing or unfit."""
    _check_built_for(torch.__version__, torch.version.cuda)
    library = library_path()
    if not library.exists():
        raise ImportError(f"gkd is not built: {library.name} is missing beside the package")
    _check_only_copy(library)
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    # It returns nothing, and torch.compile drops calls whose result nobody reads.
    for check in (torch.ops.gkd._check_target, torch.ops.gkd._check_target.default):
        torch.fx.node.has_side_effect(check)
