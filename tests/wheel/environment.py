"""An environment of its own that holds chosen packages and no others, without installing them.

Each package and what it requires is linked from the interpreter's environment into the new one:
torch alone is gigabytes, and a path to all of the old environment would hide what is missing.
"""

import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def closure(names: list[str]) -> list[Distribution]:
    """The installed distributions that `names` need, transitively; optional ones left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # required on other platforms
        for requirement in found[name].requires or []:
            if "extra ==" not in requirement or requirement.startswith("nvidia-"):
                waiting.append(re.match(r"[\w.-]+", requirement).group())
    return list(found.values())


def create(folder: Path, names: list[str]) -> Path:
    """Makes it and returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    for package in closure(names):
        home = Path(package.locate_file(""))
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(home / top)
    return python
