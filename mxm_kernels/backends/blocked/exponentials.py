"""The exponentials of ``blocked``: sums of a tile for its rows and columns, and its part of dS.

One exponential serves rows and columns, against a reference that they share: 0 where logits are
of ordinary size, which spares subtracting it. Where logits or normalisers lie too far apart for one
reference, each side has its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.tiles import Span

# A sum against a shared reference that is at least this lost only terms far below its rounding.
LEAST_SUM = 2.0**-80
# Between the least and the greatest normaliser: exp of it, and one over that, are normal numbers.
WIDEST_RANGE = 40.0
# Of the greatest logit of a tile, for sums of exp(L) itself: 1e12 of them stay inside float32.
ORDINARY = 60.0


def exp_minus(logits: Tensor, reference: Tensor | float, out: Tensor) -> Tensor:
    """exp(logits - reference) into ``out``: one pass instead of two for a reference of 0."""
    if isinstance(reference, float) and reference == 0:
        return torch.exp(logits, out=out)
    return torch.sub(logits, reference, out=out).exp_()


class Running:
    """Online log-sum-exp of rows or columns: running maximum, sum, sums weighted by values.

    ``weighted`` averages the values given, ``self_weighted`` the logits themselves.
    """

    def __init__(self, length: int, like: Tensor) -> None:
        self.top = like.new_full((length,), -torch.inf)
        self.total = like.new_zeros(length)
        self.weighted = like.new_zeros(length)
        self.self_weighted = like.new_zeros(length)

    def add(
        self,
        span: Span,
        logits: Tensor,
        dim: int,
        values: Tensor | None,
        out: Tensor,
        entropy: bool = False,
    ) -> None:
        """Merge a tile, reducing over ``dim``; ``out`` is scratch of the tile's shape."""
        top = logits.amax(dim)
        safe = torch.where(top == -torch.inf, 0, top)
        exp_minus(logits, safe.unsqueeze(dim), out)
        total, weighted = out.sum(dim), None
        owned = (out * logits).sum(dim) if entropy else None
        if values is not None:
            weighted = out.mul_(values).sum(dim)
        self.merge(span, top, total, weighted, owned)

    def merge(
        self,
        span: Span,
        top: Tensor,
        total: Tensor,
        weighted: Tensor | None,
        self_weighted: Tensor | None,
    ) -> None:
        """Merge the sums of a tile, all against ``top``."""
        part = slice(*span)
        joint = torch.maximum(self.top[part], top)
        safe = torch.where(joint == -torch.inf, 0, joint)
        decay, share = (self.top[part] - safe).exp(), (top - safe).exp()
        self.total[part] = self.total[part] * decay + total * share
        if self_weighted is not None:
            self.self_weighted[part] = self.self_weighted[part] * decay + self_weighted * share
        if weighted is not None:
            self.weighted[part] = self.weighted[part] * decay + weighted * share
        self.top[part] = joint

    def logsumexp(self) -> Tensor:
        """Log of the sum, (length,)."""
        return self.top + self.total.log()

    def average(self) -> Tensor:
        """Average of the values, (length,)."""
        return self.weighted / self.total

    def entropy(self) -> Tensor:
        """Entropy of the shares, (length,)."""
        return (self.logsumexp() - self.self_weighted / self.total).clamp(
            min=0
        )  # rounding may pass 0


def add_both(
    sides: tuple[Running, Running],
    rows: Span,
    cols: Span,
    logits: Tensor,
    values: Tensor | None,
    out: Tensor,
    entropy: bool = False,
) -> None:
    """Merge a tile into the statistics of its rows and of its columns."""
    spans = (rows, 1), (cols, 0)
    top = float(logits.amax())
    reference = 0.0 if abs(top) <= ORDINARY else top
    exp_minus(logits, reference, out)
    totals = [out.sum(dim) for _, dim in spans]
    if not min(float(total.amin()) for total in totals) >= LEAST_SUM:  # or NaN
        for side, (span, dim) in zip(sides, spans, strict=True):
            side.add(span, logits, dim, values, out, entropy)
        return
    owned = [(out * logits).sum(dim) for _, dim in spans] if entropy else [None, None]
    weighted: list[Tensor | None] = [None, None]
    if values is not None:
        out.mul_(values)
        weighted = [out.sum(dim) for _, dim in spans]
    against = logits.new_full((), reference)
    for k, (side, (span, _)) in enumerate(zip(sides, spans, strict=True)):
        side.merge(span, against, totals[k], weighted[k], owned[k])


class Term(NamedTuple):
    """One matrix's part of dS: d_i exp(L_ij - l_i) + d_j exp(L_ij - l_j).

    With a reference c it is exp(L_ij - c) (d_i + d_j), the d holding exp(c - l).
    """

    rows: Tensor  # l_i
    cols: Tensor  # l_j
    d_rows: Tensor
    d_cols: Tensor
    reference: float | None  # c; None where the l lie too far apart

    @classmethod
    def of(cls, rows: Tensor, cols: Tensor, d_rows: Tensor, d_cols: Tensor) -> Term:
        """The term; its reference is None where the normalisers lie too far apart."""
        every = torch.cat([rows, cols])
        there = every[every != -torch.inf]  # a row without negatives has no terms
        if not len(there):
            return cls(rows, cols, d_rows, d_cols, None)
        low, high = (float(end) for end in there.aminmax())
        if not high - low <= WIDEST_RANGE:  # or NaN
            return cls(rows, cols, d_rows, d_cols, None)
        reference = 0.0 if low >= -WIDEST_RANGE and high <= WIDEST_RANGE else low
        d_rows, d_cols = (
            torch.where(normaliser == -torch.inf, 0, d * (reference - normaliser).exp())
            for normaliser, d in ((rows, d_rows), (cols, d_cols))
        )
        return cls(rows, cols, d_rows, d_cols, reference)

    def add(
        self,
        rows: Span,
        cols: Span,
        logits: Tensor,
        dS: Tensor,
        scratch: Tensor,
        *,
        fresh: bool,
        left_out: Tensor | None = None,
    ) -> None:
        """Add the term to ``dS``, which is overwritten if ``fresh``, but at some places."""
        r, c = slice(*rows), slice(*cols)
        sides = (self.rows[r, None], self.d_rows[r, None]), (self.cols[c], self.d_cols[c])
        share = None
        for normaliser, d in sides:
            if share is None or self.reference is None:
                reference = normaliser if self.reference is None else self.reference
                share = exp_minus(logits, reference, scratch)
                if left_out is not None:
                    share.view(-1)[left_out] = 0
            torch.mul(share, d, out=dS) if fresh else dS.addcmul_(share, d)
            fresh = False
