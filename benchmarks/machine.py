"""What a figure depends on besides the code: written into every line of the CSV."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _clock_mhz() -> float:
    """Of the fastest core now; 0 where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return max((float(x.split(":")[1]) for x in lines if x.startswith("cpu MHz")), default=0.0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def describe(device: str) -> dict[str, str | int | float]:
    """Machine, clocks, threads and versions."""
    found: dict[str, str | int | float] = {
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "clock_mhz": round(_clock_mhz()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "none",
        "liger": _version("liger-kernel"),
        "quack": _version("quack-kernels"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["machine"] = f"{properties.name}, {properties.multi_processor_count} SMs"
        try:
            found["clock_mhz"] = torch.cuda.clock_rate()
        except Exception:  # noqa: BLE001 - needs NVML's Python package
            found["clock_mhz"] = 0
    return found


def load() -> float:
    """Processes that want a core, averaged over a minute: above the cores, figures are noise."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
