"""From an image file's bytes to what a network sees: RGB, [-1, 1], 112 x 112 by default."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIZE = 112


def decode(data: bytes, size: int = SIZE) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]; another size is scaled by its shorter side and cropped.

    Raises:
        ValueError: not an image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
    # What Pillow raises depends on the format and on the damage.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no image that can be decoded: {error}") from None
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def encode(pixels: NDArray[np.uint8], quality: int = 95) -> bytes:
    """A JPEG file of [H, W, 3] or [H, W]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def to_input(pixels: Tensor, flipped: Tensor | None = None) -> Tensor:
    """float32 [B, 3, H, W] in [-1, 1] of uint8 [B, H, W, 3], on its device.

    Args:
        pixels: as a loader makes them: a quarter of the bytes to move.
        flipped: bool [B], which images to mirror.
    """
    images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
    if flipped is None:
        return images
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
