"""Networks by name, and the files that hold their weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """For rehearsals: a few million multiply-adds on 112 x 112, images to embeddings [B, E].

    No statistics of the batch, so that a batch may be split over ranks, and smooth, so that
    rounding stays rounding: what several ranks train is what one trains.
    """

    def __init__(self, width: int, embedding: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), nn.GroupNorm(4, width), nn.SiLU()]
        shapes = ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
        for inputs, outputs, stride in shapes:
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(4, outputs),
                nn.SiLU(),
            ]
        flat = 4 * width * (size // 16) ** 2
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(flat, embedding), nn.LayerNorm(embedding)
        )

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(images)
        return embeddings


def build(
    name: str, embedding: int, size: int, checkout: str = "", half: bool = False
) -> nn.Module:
    """A network that maps [B, 3, size, size] to [B, embedding].

    Args:
        name: small:WIDTH, timm:NAME, or what arcface_torch's get_model takes, such as r50 or mbf.
        embedding: E.
        size: of an image.
        checkout: the folder of arcface_torch, for its networks.
        half: whether those compute in float16 on CUDA.

    Raises:
        ValueError: a name that nothing knows, or what it needs is not there.
    """
    kind, _, rest = name.partition(":")
    if kind == "small":
        return Small(int(rest or 16), embedding, size)
    if kind == "timm":
        try:
            timm = importlib.import_module("timm")
        except ImportError:
            raise ValueError(f"{name} needs timm: pip install timm") from None
        network: nn.Module = timm.create_model(rest, num_classes=embedding)
        return network
    get_model = _arcface_torch(name, checkout)
    built: nn.Module = get_model(name, fp16=half, num_features=embedding, dropout=0)
    return built


def has_autocast(name: str) -> bool:
    """Whether the network casts for itself on CUDA, as all of arcface_torch do: to float16 but for
    its last layers, or not at all. That overrules an autocast around it."""
    return name.partition(":")[0] not in ("small", "timm")


def _arcface_torch(name: str, checkout: str) -> Any:
    if not (Path(checkout) / "backbones" / "__init__.py").exists() or not checkout:
        raise ValueError(
            f"{name} is neither small:WIDTH nor timm:NAME, and arcface_torch = {checkout!r} has no "
            "folder backbones: clone github.com/deepinsight/insightface, and name its folder "
            "recognition/arcface_torch"
        )
    sys.path.insert(0, checkout)
    try:
        return importlib.import_module("backbones").get_model
    finally:
        sys.path.remove(checkout)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of torch.save, by name; code in it is not run.

    Raises:
        ValueError: a file without tensors.
    """
    if path.suffix == ".safetensors":
        loaded: Any = importlib.import_module("safetensors.torch").load_file(path)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, Tensor):
        return {"": loaded}
    # Lightning, and the authors' script, keep the weights one level down.
    for name in ("state_dict", "state_dict_backbone"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    tensors = {k: v for k, v in dict(loaded).items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensors")
    return tensors


def load_backbone(network: nn.Module, path: Path) -> None:
    """All weights of a network, from a file that may hold a head too.

    Raises:
        ValueError: naming weights that the file has not, or of another shape.
    """
    tensors = read_tensors(path)
    # gkd.convert, or DistributedDataParallel, put this before each name of the network's.
    prefixes = ("backbone.", "module.")
    prefix = next((p for p in prefixes if any(n.startswith(p) for n in tensors)), "")
    found = {name.removeprefix(prefix): value for name, value in tensors.items()}
    own = network.state_dict()
    wrong = [n for n, v in own.items() if n not in found or found[n].shape != v.shape]
    if wrong:
        raise ValueError(
            f"{path}: not the weights of this network: {len(wrong)} of {len(own)} are missing or "
            f"of another shape, {wrong[0]} among them"
        )
    network.load_state_dict({name: found[name] for name in own})


def load_head(path: Path, classes: int) -> Tensor:
    """[C, D], of a file with one matrix, or one named `head.weight` or `weight`.

    Raises:
        ValueError: none, or of another number of classes.
    """
    tensors = read_tensors(path)
    matrices = [v for v in tensors.values() if v.dim() == 2]
    head = tensors.get("head.weight", tensors.get("weight"))
    if head is None and len(matrices) == 1:
        head = matrices[0]
    if head is None:
        some = ", ".join(list(tensors)[:5])
        raise ValueError(f"{path}: not a head: its {len(tensors)} tensors are {some}, ...")
    if len(head) != classes:
        raise ValueError(
            f"{path}: {len(head)} classes, and the data have {classes}: another head, another data "
            "set, or a transposed matrix"
        )
    return head.float()
