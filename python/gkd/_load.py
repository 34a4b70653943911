"""Loads the operators from the library beside this file, and from nowhere else."""

from pathlib import Path

import torch


def load() -> None:
    """Register torch.ops.gkd; ImportError in one sentence when the build is missing or unfit."""
    library = Path(__file__).resolve().parent / "libgkd.so"
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(f"gkd is not built: {error}; run `pip install --no-build-isolation .`") from None
    built = _C.torch_version
    if torch.__version__.split("+")[0] != built.split("+")[0]:
        raise ImportError(
            f"gkd was built for torch {built} but torch {torch.__version__} is installed: rebuild it"
        )
    if not library.exists():
        raise ImportError("gkd is not built: libgkd.so is missing beside the package")
    torch.ops.load_library(str(library))
