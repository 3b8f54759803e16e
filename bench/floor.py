"""The floor: the matrix products of a step alone, into preallocated outputs.

S is not stored, so forward computes S (and T) and backward computes them again, then
dx = dS y and dy = dS^T x: six products with a teacher, four without. The sigmoid loss weighs its
terms before it knows them, so one pass is enough: three products. They run a block of rows
at a time over all columns, at whichever block height is fastest here. The block of S takes
the place of dS, whose numbers do not matter. On a CPU 16-bit features are multiplied in float32,
widened before the clock starts, where that is faster: without 16-bit instructions PyTorch's 16-bit
products take several times as long.

Where S and T are kept there is a lower floor beside it, without the products that compute them
again: four with a teacher, three without.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from bench.batch import Batch
from bench.machine import free_bytes
from bench.providers.provider import Mark

NAME = "floor"
KEPT = "floor of kept products"
HEIGHTS = (256, 512, 1024, 2048)
CALIBRATION_ROWS = 8192  # rows are alike: this many tell the best height


class Floor:
    """The products of one batch in ``dtype``, or in its own; see :func:`choose_floor`."""

    def __init__(
        self, batch: Batch, height: int, keeps: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        self.keeps, self.dtype = keeps, dtype or batch.x.dtype
        self.x, self.y = batch.x.detach().to(self.dtype), batch.y.detach().to(self.dtype)
        self.X, self.Y = (
            None if f is None else f.to(self.dtype) for f in (batch.teacher_x, batch.teacher_y)
        )
        self.height, self.sigmoid = height, batch.case.sigmoid
        self.products = 0  # counted, so that a test can hold it to the definition
        block = min(height, len(self.x)), len(self.y)
        self.S = self.x.new_empty(block)
        self.T = None if self.X is None else self.x.new_empty(block)
        self.dx, self.dy = torch.empty_like(self.x), torch.empty_like(self.y)

    def step(self, mark: Mark, rows: int | None = None) -> Tensor:
        """All products of forward, then all of backward, over the first ``rows`` rows."""
        spans = [
            (lo, min(lo + self.height, len(self.x)))
            for lo in range(0, len(self.x) if rows is None else rows, self.height)
        ]
        with torch.no_grad():
            if not self.sigmoid:
                for lo, hi in spans:
                    self._logits(lo, hi)
            mark()
            for lo, hi in spans:
                dS = self.S[: hi - lo] if self.keeps else self._logits(lo, hi)
                torch.mm(dS, self.y, out=self.dx[lo:hi])
                # The sum over blocks is part of the product: beta = 1, but for the first.
                self.dy.addmm_(dS.T, self.x[lo:hi], beta=0 if lo == 0 else 1)
                self.products += 2
        return self.dx

    def _logits(self, lo: int, hi: int) -> Tensor:
        S = torch.mm(self.x[lo:hi], self.y.T, out=self.S[: hi - lo])
        self.products += 1
        if self.X is not None and self.Y is not None and self.T is not None:
            torch.mm(self.X[lo:hi], self.Y.T, out=self.T[: hi - lo])
            self.products += 1
        return S


def choose_floor(batch: Batch) -> tuple[Floor, dict[str, float]]:
    """The fastest floor, and the seconds per thousand rows of each height that fits."""
    rows, dtype = len(batch.x), _fastest_dtype(batch)
    heights = [h for h in HEIGHTS if h < rows]
    whole = rows * len(batch.y) * dtype.itemsize * (2 if batch.case.teacher else 1)
    if whole <= free_bytes(batch.x.device) // 4:
        heights.append(rows)
    seconds = {}
    for height in heights:
        part = rows if height == rows else min(rows, CALIBRATION_ROWS)
        floor = Floor(batch, height, dtype=dtype)
        seconds[height] = min(_time(floor, part) for _ in range(2)) / part * 1000
    best = min(seconds, key=lambda height: seconds[height])
    return Floor(batch, best, dtype=dtype), {str(height): s for height, s in seconds.items()}


def _fastest_dtype(batch: Batch) -> torch.dtype:
    """The dtype of the features, or float32 where a CPU multiplies that faster."""
    own = batch.x.dtype
    if own.itemsize != 2 or batch.x.device.type != "cpu":
        return own
    return min(
        (own, torch.float32),
        key=lambda dtype: _time(Floor(batch, HEIGHTS[0], dtype=dtype), HEIGHTS[0]),
    )


def copy_rate() -> float:
    """Bytes a second that a copy of 256 MiB reads and writes on the CPU.

    What is kept in float32 is written, read for the statistics and read again: the rate says what
    that costs beside the products.
    """
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(4):
        start = perf_counter()
        target.copy_(source)
        seconds.append(perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def _time(floor: Floor, rows: int) -> float:
    def synchronize() -> None:
        if floor.x.is_cuda:
            torch.cuda.synchronize()

    floor.step(lambda: None, min(rows, 2 * floor.height))
    synchronize()
    start = perf_counter()
    floor.step(lambda: None, rows)
    synchronize()
    return perf_counter() - start
