"""Loads the operators from the library beside this file, and from nowhere else."""

from pathlib import Path

import torch


def library_path() -> Path:
    """Where libgkd.so has to be: beside this file."""
    return Path(__file__).resolve().parent / "libgkd.so"


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
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    # It returns nothing, and torch.compile drops calls whose result nobody reads.
    for check in (torch.ops.gkd._check_target, torch.ops.gkd._check_target.default):
        torch.fx.node.has_side_effect(check)
