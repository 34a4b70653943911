"""How a wheel's version names the torch that it is for; setup.py runs this file by itself."""

from __future__ import annotations


def minor(version: str) -> str:
    """2.11 of 2.11.0+cu130."""
    return ".".join(version.split("+")[0].split(".")[:2])


def wheel_tag(torch_version: str, cuda_version: str | None) -> str:
    """The local part of the version: pt2.11cu130, or pt2.11cpu."""
    cuda = "cu" + cuda_version.replace(".", "") if cuda_version else "cpu"
    return f"pt{minor(torch_version)}{cuda}"
