"""What gkd.linear_loss stands for: heads that make their logits, and gkd.loss.

Sizes: 7 rows, so that chunks of 3 leave a remainder; 33 classes, more than the largest group asked
for, and an odd number; 6 and 5 features, so that the networks cannot be mistaken for each other.
"""

import functools

import torch
import torch.nn.functional as F

import gkd
from oracle import error

B, C, D_S, D_T = 7, 33, 6, 5
CHUNKS = (1, 3, B, B + 4, None)
SCALE = 20.0  # no power of two


def networks(device, dtype=torch.float64, rows=B, classes=C):
    """Student features and weight, which need gradients, and the teacher's."""
    shapes = (rows, D_S), (classes, D_S), (rows, D_T), (classes, D_T)
    f, w, g, v = (torch.randn(shape).to(dtype).to(device) for shape in shapes)
    return f.requires_grad_(), w.requires_grad_(), g, v


def unfused(f, w, g, v, target=None, *, scale=SCALE, normalize=True, **settings):
    """What linear_loss stands for."""
    unit = functools.partial(F.normalize, dim=1) if normalize else (lambda x: x)
    student, teacher = (scale * unit(a) @ unit(b).t() for a, b in ((f, w), (g, v)))
    return gkd.loss(student, teacher, target, **settings)


def gradients(loss, leaves, grad_output):
    return torch.autograd.grad(loss, leaves, grad_output.to(loss))


def compare(net, target, bound, chunks=CHUNKS, **settings):
    """Value and both gradients against `unfused`, for a random grad_output."""
    expected = unfused(*net, target, **settings)
    grad_output = torch.randn(expected.shape, dtype=torch.float64) * 3
    wanted = (expected, *gradients(expected, net[:2], grad_output))
    settings.setdefault("scale", SCALE)
    for chunk_rows in chunks:
        value = gkd.linear_loss(*net, target, chunk_rows=chunk_rows, **settings)
        assert value.dtype == expected.dtype
        for got, want in zip((value, *gradients(value, net[:2], grad_output)), wanted, strict=True):
            assert got.dtype == want.dtype
            assert error(got, want) <= bound, chunk_rows
