"""What a dtype is in torch, numpy and Arrow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


class Dtype(NamedTuple):
    """``name`` is torch's. Neither numpy nor Arrow has bfloat16: they see its bits."""

    name: str
    torch: torch.dtype
    numpy: DTypeLike
    arrow: pa.DataType

    def field(self, name: str) -> pa.Field:
        """A column, or a part of one, of this dtype."""
        return pa.field(name, self.arrow, nullable=False, metadata={"dtype": self.name})

    def array(self, values: Tensor) -> NDArray[Any]:
        """A view of a CPU tensor of this dtype."""
        values = values.contiguous()
        return (values.view(torch.uint16) if self.name == "bfloat16" else values).numpy()

    def floats(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array of this dtype as numbers; bfloat16 as float32, a copy."""
        if self.name != "bfloat16":
            return values
        return (values.astype(np.uint32) << 16).view(np.float32)


ALL = {
    x.name: x
    for x in (
        Dtype("float16", torch.float16, np.float16, pa.float16()),
        Dtype("bfloat16", torch.bfloat16, np.uint16, pa.uint16()),
        Dtype("float32", torch.float32, np.float32, pa.float32()),
        Dtype("float64", torch.float64, np.float64, pa.float64()),
    )
}


def named(name: str, dtype: object, allowed: tuple[str, ...] = tuple(ALL)) -> Dtype:
    """The one that a torch.dtype or its name stands for.

    Raises:
        TypeError: it stands for none of those allowed.
    """
    found = str(dtype).removeprefix("torch.")
    if found not in allowed:
        raise TypeError(f"{name}: dtype must be one of {', '.join(allowed)}, got {dtype}")
    return ALL[found]
