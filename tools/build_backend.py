"""setuptools' own build backend, with a sentence where setuptools is missing or too old."""

import sys

try:
    import setuptools
except ImportError:
    found = "none"
else:
    found = setuptools.__version__
if found == "none" or int(found.split(".")[0]) < 77:
    sys.exit(
        f"gkd needs setuptools 77 or newer and found {found}: "
        '`pip install "setuptools>=77" wheel`, then `pip install --no-build-isolation .`'
    )

from setuptools.build_meta import *  # noqa: E402, F403
