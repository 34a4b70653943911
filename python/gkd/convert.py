"""Face recognisers' checkpoints to safetensors: ``python -m gkd.convert SOURCE FILE --classes C``.

What these projects write can be read, as a file or a folder; R is a rank:

| project | head's files and keys | head | backbone |
| --- | --- | --- | --- |
| arcface_torch, 2021 | ``rank_R_softmax_weight.pt`` | [C_r, D] | ``backbone.pth`` |
| arcface_torch, 2022 | ``softmax_fc_gpu_R.pt``, ``weight`` | [C_r, D] | ``model.pt`` |
| arcface_torch | ``checkpoint_gpu_R.pt``, ``state_dict_softmax_fc`` | [C_r, D] | in it |
| AdaFace | ``*.ckpt`` of Lightning, ``head.kernel`` | [D, C] | ``model.*`` |
| AdaDistill | ``NNNheader.pth``, ``kernel`` | [D, C] | ``NNNbackbone.pth`` |
| GKD's authors | one file, ``state_dict``, ``fc.weight`` | [C, D] | the other keys |

What is written has ``head.weight``, [C, D], and ``backbone.`` before each key of the backbone. Its
images are RGB, but BGR with AdaFace. Nothing in a file is executed: it is loaded with
``weights_only``. Writing needs safetensors: ``pip install "gkd[convert]"``.
"""

from __future__ import annotations

import argparse
from os import PathLike
from pathlib import Path

from ._checkpoints import NAME, Checkpoint
from ._checkpoints import read as _read
from ._settings import INTEGER, plain

__all__ = ["Checkpoint", "read", "write"]


def read(source: str | PathLike[str], num_classes: int) -> Checkpoint:
    """The head and the backbone of a checkpoint.

    Args:
        source: a file, or a folder that holds one head. One of several shards stands for all.
        num_classes: C, of the whole head. Without it a missing last shard would not be noticed.

    Returns:
        A `Checkpoint`: head [C, D] of the file's dtype, backbone or None, and the format's name.

    Raises:
        FileNotFoundError: nothing there, or a rank's shard is missing, naming the rank.
        ValueError: another number of classes, a shard of another size, an unknown format, listing
            the keys that were found, or a file that holds more than tensors and plain values.
    """
    classes = plain(NAME, "num_classes", num_classes, INTEGER)
    if classes < 1:
        raise ValueError(f"{NAME}: num_classes must be >= 1, got {classes}")
    return _read(Path(source), classes)


def write(checkpoint: Checkpoint, path: str | PathLike[str]) -> None:
    """Writes a safetensors file: ``head.weight`` and ``backbone.*``, the format in its metadata.

    A rank's classes can be read alone: ``safe_open(path, "pt").get_slice("head.weight")[a:b]``.
    """
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{NAME} needs safetensors: pip install "gkd[convert]"', name=error.name
        ) from None
    tensors = {"head.weight": checkpoint.head.contiguous()}
    for key, value in (checkpoint.backbone or {}).items():
        # Of its own memory: safetensors takes no two tensors that share theirs.
        tensors[f"backbone.{key}"] = value.clone().contiguous()
    save_file(tensors, path, metadata={"source": checkpoint.source})


def main(arguments: list[str] | None = None) -> None:
    """The command's own entry."""
    parser = argparse.ArgumentParser(
        prog="python -m gkd.convert",
        description="Face recognisers' checkpoints to safetensors.",
    )
    parser.add_argument("source", type=Path, help="a file, or a folder that holds one head")
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    parser.add_argument("--classes", type=int, required=True, help="of the whole head")
    options = parser.parse_args(arguments)
    try:
        found = read(options.source, options.classes)
        write(found, options.file)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    classes, dimension = found.head.shape
    backbone = f"{len(found.backbone)} tensors" if found.backbone else "none"
    print(f"{found.source}: {classes} classes of {dimension} dimensions, backbone: {backbone}")


if __name__ == "__main__":
    main()
