"""Checkpoints of face recognisers as their projects write them: which file is what.

W ranks of arcface_torch have the classes in runs, C // W on each and one more on each of the first
C % W. Nothing but tensors and plain values is unpickled.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAME = "gkd.convert"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint(NamedTuple):
    """A head and, where it was there, its backbone.

    Attributes:
        head: [C, D], one row a class.
        backbone: its state_dict, by the keys of its own code; None where there was none.
        source: the format that it was read from.
    """

    head: Tensor
    backbone: dict[str, Tensor] | None
    source: str


#: A head in shards: pattern of the files' names, and what that format is called.
_SHARDS = {
    r"rank[_:](\d+)_softmax_weight\.pt": "arcface_torch 2021, rank_R_softmax_weight.pt",
    r"softmax_fc_gpu_(\d+)\.pt": "arcface_torch 2022, softmax_fc_gpu_R.pt",
    r"checkpoint_gpu_(\d+)\.pt": "arcface_torch, checkpoint_gpu_R.pt",
}
_HEADER = r"(\d*)header\.pth"
#: How the folders of these formats call the backbone's file.
_BACKBONES = ("model.pt", "backbone.pth")


def load(path: Path) -> Any:
    """What torch.save wrote, on the CPU, with weights_only."""
    try:
        # Lightning keeps a program's options beside the weights: names and plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            zipped = zipfile.is_zipfile(path)  # as torch writes since 1.6; only such files map
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError:
        raise
    except Exception as error:
        refused = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        reason = f"it holds {refused[1]}, which is not loaded" if refused else str(error)
        raise ValueError(f"{NAME}: {path}: no tensors and plain values: {reason}") from error


def read(path: Path, num_classes: int) -> Checkpoint:
    """A file, or a folder with one head in it; see `gkd.convert.read`."""
    if not path.exists():
        raise FileNotFoundError(f"{NAME}: {path} does not exist")
    if path.is_dir():
        head, source = _only_head(path)
    else:
        head, source = path, _shard_format(path.name)
    if source is not None:
        found = _read_shards(head.parent, source, num_classes)
    else:
        found = _read_file(head)
    classes = found.head.shape[0]
    if classes != num_classes:
        other = " (its other size is: it may be transposed)" * (found.head.shape[1] == num_classes)
        raise ValueError(
            f"{NAME}: {path}: the head has {classes} classes, not {num_classes}{other}"
        )
    return found


def _shard_format(name: str) -> str | None:
    """The pattern of which a file's name is, if any."""
    return next((pattern for pattern in _SHARDS if re.fullmatch(pattern, name)), None)


def _only_head(folder: Path) -> tuple[Path, str | None]:
    """The head's file of a folder, one of its shards', and their pattern."""
    names = sorted(x.name for x in folder.iterdir() if x.is_file())
    patterns = {p for p in map(_shard_format, names) if p}
    heads = [name for name in names if re.fullmatch(_HEADER, name)]
    if len(patterns) + len(heads) != 1:
        kinds = [_SHARDS[p] for p in sorted(patterns)] + heads
        have = f"heads of several kinds, {', '.join(kinds)}" if kinds else "no head known to gkd"
        raise ValueError(f"{NAME}: {folder} has {have}; pass one file. It has: {_some(names)}")
    if heads:
        return folder / heads[0], None
    (pattern,) = patterns
    return folder / next(name for name in names if re.fullmatch(pattern, name)), pattern


def _read_shards(folder: Path, pattern: str, num_classes: int) -> Checkpoint:
    """All ranks' rows, in order."""
    matches = (re.fullmatch(pattern, x.name) for x in folder.iterdir())
    files = {int(match[1]): folder / match[0] for match in matches if match}
    world_size = max(files) + 1
    for rank in range(world_size):
        if rank not in files:
            raise FileNotFoundError(
                f"{NAME}: {folder}: the shard of rank {rank} is missing, of ranks 0 to "
                f"{world_size - 1} by the files' names"
            )
    shards, backbone = [], None
    for rank in range(world_size):
        content = load(files[rank])
        state = content
        if isinstance(content, dict) and "state_dict_softmax_fc" in content:
            state = content["state_dict_softmax_fc"]
            backbone = backbone or _tensors(content.get("state_dict_backbone", {}))
        shards.append(_matrix(files[rank], state, ("weight", "weight_activated")))
    if len({shard.shape[1] for shard in shards}) > 1:
        shapes = [list(shard.shape) for shard in shards]
        raise ValueError(f"{NAME}: {folder}: shards of different dimensions, {shapes}")
    sizes = [len(shard) for shard in shards]
    each, more = divmod(num_classes, world_size)
    for rank, size in enumerate(sizes):
        if size != (due := each + (rank < more)):
            raise ValueError(
                f"{NAME}: {files[rank]} has {size} classes; rank {rank} of {world_size} has {due} "
                f"of {num_classes}, and all the files together have {sum(sizes)}. Is the number of "
                "classes right, and is the last rank's file there?"
            )
    return Checkpoint(torch.cat(shards), backbone or _beside(folder), _SHARDS[pattern])


def _read_file(path: Path) -> Checkpoint:
    """One file that holds the whole head, known by its keys."""
    content = load(path)
    if isinstance(content, Tensor):
        return Checkpoint(_matrix(path, content, ()), _beside(path.parent), "a tensor")
    if not isinstance(content, Mapping):
        raise ValueError(f"{NAME}: {path}: unknown format, a {type(content).__name__}")
    if isinstance(content.get("state_dict"), Mapping):
        # DataParallel and DistributedDataParallel put their own name in front.
        state = {k.removeprefix("module."): v for k, v in content["state_dict"].items()}
        if "head.kernel" in state:
            head = _matrix(path, state, ("head.kernel",)).T
            return Checkpoint(head, _part(state, "model."), "AdaFace, Lightning")
        if "fc.weight" in state:
            head = _matrix(path, state, ("fc.weight",))
            rest = {k: v for k, v in state.items() if not k.startswith("fc.")}
            return Checkpoint(head, _tensors(rest), "GKD's authors, state_dict")
        raise ValueError(f"{NAME}: {path}: unknown format: its state_dict has {_some(state)}")
    if "kernel" in content:
        head = _matrix(path, content, ("kernel",)).T
        name = re.fullmatch(_HEADER, path.name)
        beside = path.parent / f"{name[1]}backbone.pth" if name else None
        backbone = _tensors(load(beside)) if beside and beside.exists() else None
        return Checkpoint(head, backbone, "AdaDistill, header")
    if set(content) & {"weight", "weight_activated"}:
        head = _matrix(path, content, ("weight", "weight_activated"))
        return Checkpoint(head, _beside(path.parent), "a head's state_dict")
    raise ValueError(f"{NAME}: {path}: unknown format: it has {_some(content)}")


def _matrix(path: Path, content: Any, keys: tuple[str, ...]) -> Tensor:
    """The first of the keys, or the tensor itself: floats of two dimensions."""
    found = content
    if isinstance(content, Mapping):
        key = next((k for k in keys if k in content), None)
        if key is None:
            raise ValueError(f"{NAME}: {path}: unknown format: it has {_some(content)}")
        found = content[key]
    if not isinstance(found, Tensor) or found.dim() != 2 or found.dtype not in _DTYPES:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found)
        raise ValueError(f"{NAME}: {path}: the head is not a float matrix, but {what}")
    return found.detach()


def _beside(folder: Path) -> dict[str, Tensor] | None:
    """The backbone of arcface_torch's folder."""
    found = [folder / name for name in _BACKBONES if (folder / name).exists()]
    return _tensors(load(found[0])) if found else None


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor] | None:
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return _tensors(inside)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Without what is no tensor; None where nothing is left."""
    kept = {k: v.detach() for k, v in state.items() if isinstance(v, Tensor)}
    return kept or None


def _some(names: Any, most: int = 12) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
