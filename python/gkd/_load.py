"""Loads the operators from the library beside this file, and from nowhere else."""

import ctypes
import os
from pathlib import Path

import torch


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


def load() -> None:
    """Register torch.ops.gkd; ImportError in one sentence when the build is missing or unfit."""
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(
            f"gkd is not built: {error}; run `pip install --no-build-isolation .`"
        ) from None
    built = _C.torch_version
    if torch.__version__.split("+")[0] != built.split("+")[0]:
        raise ImportError(
            f"gkd was built for torch {built} but torch {torch.__version__} is installed: "
            "rebuild it with `pip install --no-build-isolation .`"
        )
    library = library_path()
    if not library.exists():
        raise ImportError(f"gkd is not built: {library.name} is missing beside the package")
    _check_only_copy(library)
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    # It returns nothing, and torch.compile drops calls whose result nobody reads.
    for check in (torch.ops.gkd._check_target, torch.ops.gkd._check_target.default):
        torch.fx.node.has_side_effect(check)
