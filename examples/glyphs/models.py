"""The recognisers: a residual embedder and the cosine head of face recognition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.activation = activation()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))


class Recogniser(nn.Module):
    """Image to unit embedding; `cosines` compares an embedding with every class's own vector.

    The last feature map is flattened, not averaged, before the embedding, as face recognisers do:
    where a stroke is matters as much as that it is there.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int,
        depth: int,
        embedding: int,
        image_size: int = 32,
        stem: int = 2,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 2 * stem - 1, stem, stem - 1, bias=False),
            nn.BatchNorm2d(width),
            activation(),
        )
        blocks: list[nn.Module] = []
        inputs = width
        for stage, outputs in enumerate(widths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(inputs, outputs, stride, activation))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        side = -(-image_size // (4 * stem))
        self.embed = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs * side * side, embedding), nn.BatchNorm1d(embedding)
        )
        self.head = nn.Parameter(torch.randn(classes, embedding) / embedding**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings [B, E]."""
        return F.normalize(self.embed(self.blocks(self.stem(images))))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """[B, classes], each in [-1, 1]."""
        return embeddings @ F.normalize(self.head).t()


def margin_loss(cosines: Tensor, labels: Tensor, *, scale: float, margin: float) -> Tensor:
    """Cross-entropy of scaled cosines, the target's lowered by a margin (CosFace)."""
    lowered = cosines.clone()
    lowered[torch.arange(len(labels), device=labels.device), labels] -= margin
    return F.cross_entropy(lowered * scale, labels)


def cost(model: Recogniser, image_size: int) -> tuple[int, int]:
    """Parameters without the head, and multiply-adds of one embedding."""
    macs = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules()]
    training = model.training
    device = model.head.device
    model.eval()(torch.zeros(1, 1, image_size, image_size, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for n, p in model.named_parameters() if n != "head")
    return parameters, macs
