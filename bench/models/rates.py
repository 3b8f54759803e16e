"""Rates of a GPU that the prediction is made of: documented ones, or those of a ceilings file.

``bench/gpu/ceilings.py`` measures them and states the schema of the file. Everything is in
operations, bytes or seconds; U, the operations of one product, is 2 M N D.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.models.chunk_costs import PROCESSORS, tiles
from bench.results_file import RESULTS

CEILINGS = RESULTS / "nvidia-h200-ceilings.json"

# H100 SXM data sheet: 989.4 TFLOP/s of dense bf16. The clock is the one at which 4 matrix units of
# 512 multiply-adds on each multiprocessor reach that rate.
PRODUCTS, SHEET = 2048, 989.4e12
CLOCK = SHEET / (2 * PROCESSORS * PRODUCTS)
# Device to device, read and written: 0.9 of the data sheet's 3.35 TB/s, seen on an H100 80GB HBM3.
COPY = 3.0e12
# A stream of reads and what a matrix product's factors come with, both measured on an H200, which
# has the H100's L2: bench/gpu/ceilings.py, and a bare product in tiles of 128 x 128 by 4 warps with
# descriptors, 643 TFLOP/s at 64 operations a byte. Programs that read the same block at the same
# time may be served at once, so the product's is the higher. (RRZE-HPC/gpu-benches, gpu-l2-cache,
# has 9.6 to 9.9 TB/s for the stream.) A file has the stream alone, and the share is kept.
L2_STREAM = 8.44e12
L2_PRODUCT_SHARE = 10.0 / 8.44
# torch.mm of 8192 cubed, bfloat16, random numbers, PyTorch 2.11 on an H100 80GB HBM3.
CUBED = 798e12
# The vendor's rate by K over that at K 8192. Triton's Gluon tutorial 07-persistence, Hopper, cuBLAS
# at 8192 x 8192 x K: 588 TFLOP/s at 512 and 1024, 616 at 2048, 646 at 4096, 661 at 8192, 665 at
# 16,384. Up to 1024 it is the share of the last, 0.885, the lower one.
BY_K = {512: 0.885, 768: 0.885, 1024: 0.885, 2048: 0.931, 4096: 0.978, 8192: 1.0}
# Between two kernels of a CUDA graph: an assumption. It is in the line of the smallest batch only.
LAUNCH = 1.5e-6
# A tile of 128 x 128 multiplies 2 x 128 x 128 for every 2 x (128 + 128) bytes that it reads.
HALF_TILE_OPERATIONS = 64

CHUNK_D = 768  # of the chunk products that are measured
# Height and width of the chunks of dS whose products are measured.
CHUNKS = ((2048, 65536), (8192, 16384), (11648, 11648), (16384, 16384), (16384, 32768))
S_SHAPE = 4096, 32768  # of S in the products by K
S_DEPTHS = (512, 768, 1024)


@dataclass(frozen=True)
class Rates:
    """What the prediction reads."""

    file: str | None = None  # of ceilings, and the machine that it is from
    gpu: str = "H100 SXM"
    processors: int = PROCESSORS
    clock: float = CLOCK
    copy: float = COPY
    additions: float = COPY  # bytes read and written by ``sum += product`` in float32
    l2_stream: float = L2_STREAM
    cubed: float = CUBED
    by_k: dict[int, float] = field(default_factory=lambda: {k: r * CUBED for k, r in BY_K.items()})
    # (height, width) of a chunk: the rates of dX = dS Y and dY = dS^T X
    chunks: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    launch: float = LAUNCH

    @property
    def source(self) -> str:
        """Where the rates are from, for the page."""
        return f"measured, {self.file}" if self.file else "documented constants, not measured"

    @property
    def l2_product(self) -> float:
        """Bytes a second that a product's factors come from L2 with."""
        return L2_PRODUCT_SHARE * self.l2_stream

    def product(self, K: int) -> float:
        """The vendor's rate of large products over ``K``, between those known by log K."""
        known = sorted(self.by_k)
        K = min(max(K, known[0]), known[-1])
        right = next(k for k in known if k >= K)
        if right == K:
            return self.by_k[K]
        left = known[known.index(right) - 1]
        part = math.log(K / left) / math.log(right / left)
        return self.by_k[left] * (1 - part) + self.by_k[right] * part

    def waves(self, count: int) -> int:
        """Rounds in which the multiprocessors take the tiles, one each."""
        return -(-count // self.processors)

    def gradient(self, count: int, K: int) -> float:
        """The vendor's rate of a gradient product of that many tiles (``chunk_costs.TILE``).

        It takes the faster of that tile and of half of it. Half of it fills more multiprocessors
        and reads L2 for every 64 operations, which bounds it. The rate by K is that of the cube,
        whose last wave is not full either.
        """
        cube = self._busy(tiles(8192, 8192))
        whole = self.product(K) * self._busy(count) / cube
        half = self.product(K) * self._busy(2 * count) / cube
        return max(whole, min(half, HALF_TILE_OPERATIONS * self.l2_product))

    def _busy(self, count: int) -> float:
        return count / (self.waves(count) * self.processors)

    def chunk(self, height: int, width: int, dx_tiles: int, dy_tiles: int) -> tuple[float, float]:
        """The rates of dX and dY of a chunk of dS.

        As :meth:`gradient` has them, times what the nearest measured chunk reached of it, if any.
        """
        rates = self.gradient(dx_tiles, width), self.gradient(dy_tiles, height)
        if not self.chunks:
            return rates
        near = min(
            self.chunks,
            key=lambda c: abs(math.log(c[0] / height)) + abs(math.log(c[1] / width)),
        )
        dx, dy = self.chunks[near]
        of_dx, of_dy = (self.gradient(tiles(n, CHUNK_D), k) for n, k in (near, near[::-1]))
        return rates[0] * dx / of_dx, rates[1] * dy / of_dy


def read(path: Path) -> Rates:
    """The rates of a ceilings file.

    Raises:
        ValueError: it is not such a file, or a constant is missing or no positive number.
    """
    content = _content(path)

    def number(*names: str) -> float:
        return _number(path, content, names)

    clock, told = CLOCK, ", clock of the data sheet"
    if {"clock_under_load", "clock"} & content["constants"].keys():
        clock, told = number("clock_under_load", "clock"), ""
    cubed = number("product_8192")
    by_k = {k: share * cubed for k, share in BY_K.items()}
    by_k |= {k: number(f"S_k{k}") for k in S_DEPTHS}
    return Rates(
        file=f"{path.name} ({_machine(content)}){told}",
        gpu=device_name(content),
        processors=int(number("multiprocessors")),
        clock=clock,
        copy=number("copy"),
        additions=number("add_float32"),
        l2_stream=number("l2_read"),
        cubed=cubed,
        by_k=by_k,
        chunks={(h, w): (number(f"dx_{h}x{w}"), number(f"dy_{h}x{w}")) for h, w in CHUNKS},
        launch=number("launch_in_graph"),
    )


def cubed_rates(folder: Path) -> dict[str, float]:
    """The rate of the 8192-cubed product by GPU, of every ``*ceilings.json`` in ``folder``."""
    found = {}
    for path in sorted(folder.glob("*ceilings.json")):
        content = _content(path)
        if content["device"].get("gpu") and content.get("suite") == "full":
            found[device_name(content)] = _number(path, content, ("product_8192",))
    return found


def device_name(content: dict[str, Any]) -> str:
    """The GPU of a ceilings file; the CPU of a rehearsal."""
    return content["device"].get("gpu") or content["device"].get("cpu") or "unknown device"


def _machine(content: dict[str, Any]) -> str:
    what = device_name(content)
    if not content["device"].get("gpu"):
        what += ", which is no GPU"
    if content.get("suite") != "full":
        what += ", tiny shapes: a rehearsal that predicts nothing"
    return what


def _content(path: Path) -> dict[str, Any]:
    """The file, with its outer shape checked."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        what = "the JSON of bench/gpu/ceilings.py"
        raise ValueError(f"{path}: expected {what}, got {error}") from None
    for key in ("device", "constants"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            got = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path}: expected an object with an object {key!r}, got {got}")
    return content


def _number(path: Path, content: dict[str, Any], names: tuple[str, ...]) -> float:
    """The first of the constants that the file has."""
    for name in names:
        if name in content["constants"]:
            entry = content["constants"][name]
            value = entry.get("value") if isinstance(entry, dict) else entry
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or not number or not 0 < value < math.inf:
                raise ValueError(f"{path}: {name}: expected a positive number, got {value!r}")
            return float(value)
    reasons = content.get("missing") or {}
    cut_off = "the run may have been cut off"
    why = next((reasons[name] for name in names if name in reasons), cut_off)
    raise ValueError(f"{path}: expected the constant {' or '.join(names)}, got none: {why}")
