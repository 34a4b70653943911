"""One network's head, a chunk of rows at a time: logits from features, and their gradients.

With cosine logits, L_bc = s <f_b, w_c> / (|f_b| |w_c|), no normalised copy of the [C, D] weight is
made. In float32 and float64 the columns of the logits, and of their gradient, are multiplied by
s/|w_c| instead. In float16 and bfloat16, where such a product could overflow or be rounded once
more, chunks of the weight's rows are normalised in float32 and rounded, as F.normalize under
autocast does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPS = 1e-12  #: the least norm that is divided by, as in F.normalize
#: Elements of a chunk of rows, by whether the device is a CPU: there a chunk stays in the cache.
CHUNK_ELEMENTS = {True: 2**20, False: 2**24}


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over a float of `dtype` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_chunks(matrix: Tensor) -> Iterator[slice]:
    """Runs of rows of a matrix, each small enough for temporaries of its own."""
    rows, columns = matrix.shape
    step = max(1, CHUNK_ELEMENTS[matrix.device.type == "cpu"] // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def norms(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows] Euclidean norms in `dtype`, at least EPS."""
    found = torch.empty(matrix.shape[0], dtype=dtype, device=matrix.device)
    for part in row_chunks(matrix):  # a half matrix is widened on the way
        torch.linalg.vector_norm(matrix[part].to(dtype), dim=1, out=found[part])
    return found.clamp_(min=EPS)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in total's dtype from the first product on."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        total.add_(torch.mm(a, b, out_dtype=total.dtype))
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def finish_gradient(total: Tensor, source: Tensor, norm: Tensor | None, factor: Tensor) -> None:
    """Turns `total`, the gradient of the normalised rows of `source`, into factor times that of
    `source`, in place.

    With n = 1/norm: n (g - n^2 <g, x> x) for each row g of `total` and x of `source`; n g where the
    norm was clamped; g without norms. `factor` is [] or [rows, 1].
    """
    if norm is None:
        total.mul_(factor)
        return
    for part in row_chunks(source):
        g, scale = total[part], factor if factor.dim() == 0 else factor[part]
        length = norm[part].unsqueeze(1)
        # A clamped norm is a constant. An ignored row counts as 0, and it may hold a NaN.
        x = torch.where(length > EPS, source[part].to(total.dtype), 0)
        along = (g * x).sum(1, keepdim=True) / length.square()
        total[part] = torch.addcmul(g, along, x, value=-1).mul_(scale / length)


class Head:
    """Logits [rows, C] of chunks, and the sums that make up the gradients of what they came from.

    features: [B, D]; weight: [C, D]; dtype: of the logits and the products; scale: s.
    """

    def __init__(
        self, features: Tensor, weight: Tensor, dtype: torch.dtype, scale: float, normalize: bool
    ) -> None:
        self.weight, self.dtype = weight, dtype
        self.columns = torch.full((), scale, dtype=accumulate_dtype(dtype), device=weight.device)
        self.features = features.to(accumulate_dtype(dtype))
        self.norms: tuple[Tensor | None, Tensor | None] = (None, None)
        if normalize:
            of_features = norms(self.features, accumulate_dtype(dtype))
            of_weight = norms(weight, accumulate_dtype(dtype))
            self.norms = (of_features, of_weight)
            self.features = self.features / of_features.unsqueeze(1)
            self.columns = self.columns / of_weight
        self.columns = self.columns.expand(weight.shape[0])
        self.plain = not normalize and scale == 1  # columns of ones
        self.rounds = dtype != accumulate_dtype(dtype)

    def _parts(self) -> Iterator[slice]:
        """Classes at a time: all on a GPU, but for half ones. On a CPU a product of few rows with a
        chunk that is in the cache takes half the time of that with the whole weight."""
        if self.rounds or self.weight.device.type == "cpu":
            return row_chunks(self.weight)
        return iter([slice(0, self.weight.shape[0])])

    def _rows(self, part: slice) -> Tensor:
        """Weight rows for a product; half ones are multiplied by their columns' factors already."""
        rows = self.weight[part]
        if self.rounds and not self.plain:
            rows = rows.to(self.columns.dtype) * self.columns[part].unsqueeze(1)
        return rows.to(self.dtype)

    def _scale_columns(self, logits: Tensor, part: slice) -> None:
        if not (self.rounds or self.plain):
            logits.mul_(self.columns[part])

    def logits(self, rows: slice, out: Tensor) -> Tensor:
        """The logits of some rows, written to the head of `out`, [chunk, C]."""
        unit = self.features[rows].to(self.dtype)
        out = out[: unit.shape[0]]
        for part in self._parts():
            torch.mm(unit, self._rows(part).t(), out=out[:, part])
            self._scale_columns(out[:, part], part)
        return out

    def add_gradients(
        self,
        gradient: Tensor,
        rows: slice,
        to_features: Tensor | None,
        to_weight: Tensor | None,
        row_weight: Tensor | None,
    ) -> None:
        """Add what the logits' gradient [rows, C] of a chunk gives; the gradient is used up.

        to_features: [rows, D], the sum over c of G_bc s w_c/|w_c|. to_weight: [C, D], the sum over
        b of row_weight_b G_bc f_b/|f_b|.
        """
        unit = self.features[rows]
        if row_weight is not None:
            unit = unit * row_weight[rows].unsqueeze(1)
        unit = unit.to(self.dtype)
        for part in self._parts():
            g = gradient[:, part]
            if to_weight is not None:
                add_product(to_weight[part], g.t(), unit)
            if to_features is not None:
                self._scale_columns(g, part)
                add_product(to_features, g, self._rows(part))
