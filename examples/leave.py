"""The end of a process that torchrun started."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """Ends the program. Gloo's threads outlive their group, kept alive by DTensor's caches among
    others. While one of them still releases a tensor, the interpreter's own end would abort a rank,
    so a rank leaves without it."""
    if "RANK" in os.environ:  # torchrun's
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
