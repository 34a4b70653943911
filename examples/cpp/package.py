"""Saves a model with torch.ops.gkd.loss inside for C++ programs, and prints its loss.

``python examples/cpp/package.py --out DIR`` writes inputs.pt, script.pt (TorchScript) and loss.pt2
(AOTInductor, compiled for this machine's CPU), which ``dispatch`` and ``packaged`` run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gkd  # noqa: F401  registers torch.ops.gkd


class CosineHead(nn.Module):
    """A cosine head and its distance from a teacher's logits."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))

    def forward(self, features: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(features), F.normalize(self.weight))
        return torch.ops.gkd.loss(64 * cosines, teacher, target, rank_by="student")


def inputs(rows: int = 5, features: int = 16, classes: int = 300) -> dict[str, Tensor]:
    """Rows and classes that no vector width divides."""
    return {
        "features": torch.randn(rows, features),
        "student": 8 * torch.randn(rows, classes),
        "teacher": 8 * torch.randn(rows, classes),
        "target": torch.randint(classes, (rows,)),
    }


def main() -> None:
    build = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="an existing folder")
    build.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    options = build.parse_args()
    torch.manual_seed(options.seed)
    tensors = inputs()
    head = CosineHead(16, 300).requires_grad_(False)
    arguments = (tensors["features"], tensors["teacher"], tensors["target"])
    torch.save(tensors, options.out / "inputs.pt")
    torch.jit.script(head).save(str(options.out / "script.pt"))
    torch._inductor.aoti_compile_and_package(
        torch.export.export(head, arguments), package_path=str(options.out / "loss.pt2")
    )
    print(f"model {head(*arguments).item():.9g}")
    student = tensors["student"].requires_grad_()
    loss = torch.ops.gkd.loss(student, tensors["teacher"], tensors["target"])
    loss.backward()
    print(f"loss {loss.item():.9g}\ngradient {student.grad.double().abs().sum().item():.9g}")


if __name__ == "__main__":
    main()
