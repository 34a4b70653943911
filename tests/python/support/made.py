"""What the operators under a mode give back, but for tensors of shapes alone; and how many of them
are collectives."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Made(TorchDispatchMode):
    """`made`: which operator gave which shapes; `kept`: the tensors, where it is asked for them."""

    def __init__(self, keep=False):
        super().__init__()
        self.made, self.kept, self.keep = set(), [], keep

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor) and not part.is_meta:
                self.made.add((str(function.overloadpacket), part.shape))
                self.kept += [part] * self.keep
        return result

    @property
    def largest(self):
        """The elements of the largest."""
        return max(shape.numel() for _, shape in self.made)


class Collectives(TorchDispatchMode):
    """Counts those that are called."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.count += "_c10d_functional" in name and "wait" not in name
        return function(*args, **(kwargs or {}))
