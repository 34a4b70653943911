"""What this installation of gkd is: ``python -m gkd.info``, to be pasted into a bug report."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from . import __version__, _build
from ._load import library_path


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        gib = device.total_memory / 2**30
        found.append(f"{device.name}, sm_{device.major}{device.minor}, {gib:.0f} GiB")
    return found


def _processor() -> str:
    """The CPU's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def info() -> dict[str, str]:
    """Versions, CUDA, architectures, the library's path and the devices, by name."""
    facts = {
        "gkd": __version__,
        "torch": f"{torch.__version__} (gkd built for {_build.torch_version})",
        "python": platform.python_version(),
        "platform": f"{platform.platform()}, {_processor()}",
        "compiler": _build.compiler,
        "CUDA toolkit": _build.cuda_version or "CPU only",
        "architectures": _build.cuda_architectures or "none",
        "library": str(library_path()),
        "CPU kernels": f"{torch.ops.gkd._cpu_capability()}, {torch.get_num_threads()} threads",
    }
    devices = _devices()
    facts["devices"] = "cpu" if not devices else "cpu, cuda"
    for index, device in enumerate(devices):
        facts[f"cuda:{index}"] = device
    return facts


def main() -> None:
    """Print :func:`info`, one fact a line."""
    for name, fact in info().items():
        print(f"{name:14} {fact}")


if __name__ == "__main__":
    main()
