"""Random distortions of whole batches, so that twelve faces become many photographs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Part


def to_float(images: Tensor) -> Tensor:
    """uint8 to the float range the networks see, [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """The inverse of `to_float`, clamped and rounded."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotation, scale, shear, shift, stroke weight, blur, contrast and noise.

    Takes and returns float images [B, 1, H, W] in [-1, 1]; `generator` is of their device.
    """
    count = images.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(count, 1, 1, 1, generator=generator, device=images.device)
        return low + (high - low) * draw

    angle = uniform(-12, 12) * (math.pi / 180)
    shear = uniform(-0.15, 0.15)
    scale_x, scale_y = uniform(0.85, 1.15), uniform(0.85, 1.15)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.cat([cos * scale_x, (shear * cos - sin) * scale_y, uniform(-0.1, 0.1)], dim=3)
    row_y = torch.cat([sin * scale_x, (shear * sin + cos) * scale_y, uniform(-0.1, 0.1)], dim=3)
    affine = torch.cat([row_x, row_y], dim=2).squeeze(1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    # Dilation or erosion by one pixel, blended in by a random share: a change of stroke weight.
    weight = uniform(-0.5, 0.6)
    thick = F.max_pool2d(images, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-images, 3, stride=1, padding=1)
    images = images + weight.clamp(min=0) * (thick - images) - weight.clamp(max=0) * (thin - images)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images + uniform(0, 0.9) * (blurred - images)

    images = images * uniform(0.5, 1.0) + uniform(-0.2, 0.2)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + uniform(0, 0.15) * noise


def distorted(part: Part, seed: int) -> Part:
    """One distorted copy of each photograph, made on the CPU: the same for every model and device.

    Clean renderings are too easy: a recogniser in use does not choose its photographs either.
    """
    generator = torch.Generator().manual_seed(seed)
    copies = [to_bytes(augment(to_float(c), generator)) for c in part.images.split(1024)]
    return Part(torch.cat(copies), part.labels)
