"""How every constant of ``bench/gpu/ceilings.py`` is measured, most important first."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bench.gpu.clock import once, synchronize, timed
from bench.gpu.kernels import empty_kernel, read_kernel
from bench.models.rates import CHUNK_D, CHUNKS, S_DEPTHS, S_SHAPE

Suite = Literal["full", "smoke"]
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
L2_NUMBERS = 4 << 20  # 16 MB of float32: inside the L2 of an A100 (40 MB) and an H100 (50 MB)
COPY_NUMBERS = 256 << 20  # 1 GB, twenty times the L2
ADDED = 32768, 768  # dY of the first headline case: 100 MB, twice the L2
LAUNCHES = 200
LOAD_SECONDS, LOAD_PRODUCTS = 1.0, 2000  # how long the multiprocessors are kept busy, at most


class Found(NamedTuple):
    """One constant."""

    value: float
    unit: str
    how: str


class Unreadable(Exception):  # noqa: N818  (an answer, not an error)
    """Why a constant cannot be had here."""


Measurement = tuple[str, Callable[[], Found]]


class Constants:
    """The measurements of one device, most important first."""

    def __init__(self, device: torch.device, suite: Suite) -> None:
        self.device, self.suite = device, suite
        self.is_gpu = device.type == "cuda"

    def scaled(self, n: int) -> int:
        """A size, or in the smoke suite a tiny one that takes the same way."""
        return n if self.suite == "full" else max(16, n >> 10)

    def random(self, *shape: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
        """Normal numbers: products of zeros run faster than real ones."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    def measurements(self) -> Iterator[Measurement]:
        """Names and what measures them."""
        yield "multiprocessors", self._multiprocessors
        yield "l2_bytes", self._l2_bytes
        yield "clock", self._clock
        yield "product_8192", self._cubed
        for K in S_DEPTHS:
            yield f"S_k{K}", partial(self._similarities, K)
        yield "l2_read", self._l2_read
        yield "copy", self._copy
        yield "add_float32", self._add
        for height, width in CHUNKS:
            yield f"dx_{height}x{width}", partial(self._gradient, height, width, False)
            yield f"dy_{height}x{width}", partial(self._gradient, height, width, True)
        yield "launch_in_graph", self._launch_in_graph
        yield "launch", self._launch
        yield "clock_under_load", self._clock_under_load
        for K in S_DEPTHS:
            yield f"S_k{K}_float32", partial(self._similarities, K, FLOAT32)
        for precision in ("tf32", "ieee"):
            yield f"float32_{precision}", partial(self._float32, precision)

    def _properties(self, name: str) -> float:
        if not self.is_gpu:
            raise Unreadable(f"{self.device} has no {name}")
        found = getattr(torch.cuda.get_device_properties(self.device), name, None)
        if not found:
            raise Unreadable(f"torch {torch.__version__} says no {name}")
        return float(found)

    def _multiprocessors(self) -> Found:
        if not self.is_gpu:
            return Found(2, "count", "stands for a GPU's in a rehearsal")
        return Found(self._properties("multi_processor_count"), "count", "device properties")

    def _l2_bytes(self) -> Found:
        return Found(self._properties("L2_cache_size"), "bytes", "device properties")

    def _clock(self) -> Found:
        return Found(1e3 * self._properties("clock_rate"), "Hz", "device properties: the highest")

    def _rate(self, run: Callable[[], object], work: float, unit: str, what: str) -> Found:
        """``work`` over the median seconds of ``run``."""
        took = timed(run, self.device)
        clock = "events" if self.is_gpu else "the host's clock"
        how = f"{what}, random data, median of {took.repeats} by {clock}"
        return Found(work / took.seconds, unit, how)

    def _product(self, a: Tensor, b: Tensor, what: str, out: torch.dtype | None = None) -> Found:
        """The rate of ``a @ b`` as the backend calls it: a new output, in the dtype ``out``."""
        into = a.dtype if out is None else out

        def run() -> Tensor:
            if into == a.dtype:
                return torch.mm(a, b)
            if self.is_gpu:
                return torch.mm(a, b, out_dtype=into)
            return torch.mm(a.to(into), b.to(into))  # a CPU has no wider output

        (M, K), N = a.shape, b.shape[1]
        dtypes = f"{a.dtype} into {into}".replace("torch.", "")
        how = f"{what}: torch.mm, {M} x {N} over K {K}, {dtypes}"
        return self._rate(run, 2.0 * M * N * K, "FLOP/s", how)

    def _cubed(self) -> Found:
        n = self.scaled(8192)
        return self._product(self.random(n, n), self.random(n, n), "cube")

    def _similarities(self, K: int, out: torch.dtype = BFLOAT16) -> Found:
        (M, N), K = map(self.scaled, S_SHAPE), self.scaled(K)
        return self._product(self.random(M, K), self.random(N, K).T, "S = X Y^T", out)

    def _gradient(self, height: int, width: int, transposed: bool) -> Found:
        height, width, D = map(self.scaled, (height, width, CHUNK_D))
        dS = self.random(height, width)
        if transposed:
            return self._product(dS.T, self.random(height, D), "dY = dS^T X", FLOAT32)
        return self._product(dS, self.random(width, D), "dX = dS Y", FLOAT32)

    def _float32(self, precision: str) -> Found:
        (M, N), K = map(self.scaled, S_SHAPE), self.scaled(768)
        x, y = self.random(M, K, dtype=FLOAT32), self.random(N, K, dtype=FLOAT32)
        settings = torch.backends.cuda.matmul
        before = settings.fp32_precision
        settings.fp32_precision = precision
        try:
            return self._product(x, y.T, f"S = X Y^T, {precision}")
        finally:
            settings.fp32_precision = before

    def _l2_read(self) -> Found:
        BLOCK, per_processor = (8192, 4) if self.suite == "full" else (256, 1)
        data = self.random(self.scaled(L2_NUMBERS), dtype=FLOAT32)
        processors = int(self._multiprocessors().value)
        blocks, programs = data.numel() // BLOCK, per_processor * processors
        sums = torch.empty(programs, device=self.device)

        def run() -> None:
            read_kernel[(programs,)](data, sums, BLOCKS=blocks, BLOCK=BLOCK, num_warps=8)

        what = f"{data.nbytes >> 10} KiB read by each of {programs} programs of a Triton kernel"
        found = self._rate(run, float(programs * data.nbytes), "bytes/s", what)
        expected = data.double().sum()
        wrong = (sums.double() - expected).abs().max() / data.double().norm()
        if not wrong < 1e-3:  # of float32 sums; a skipped or repeated block is off by far more
            raise RuntimeError(f"l2_read: expected sums of {expected:.6g}, got {sums[:4].tolist()}")
        return found

    def _copy(self) -> Found:
        source = self.random(self.scaled(COPY_NUMBERS), dtype=FLOAT32)
        target = torch.empty_like(source)
        what = f"copy of {source.nbytes} bytes on the device, read and written"
        return self._rate(lambda: target.copy_(source), 2.0 * source.nbytes, "bytes/s", what)

    def _add(self) -> Found:
        total, part = (self.random(*map(self.scaled, ADDED), dtype=FLOAT32) for _ in range(2))
        what = f"sum += product in float32, {tuple(total.shape)}, 12 bytes a number"
        return self._rate(lambda: total.add_(part), 3.0 * total.nbytes, "bytes/s", what)

    def _launches(self) -> Callable[[], None]:
        out, count = torch.empty(1, device=self.device), self.scaled(LAUNCHES)

        def run() -> None:
            for _ in range(count):
                empty_kernel[(1,)](out)

        run()  # compiled before it is captured or timed
        return run

    def _launch(self) -> Found:
        run, count = self._launches(), self.scaled(LAUNCHES)
        seconds = min(once(run, self.device) for _ in range(5)) / count
        how = f"an empty Triton kernel {count} times from Python, least of 5 by the host's clock"
        return Found(seconds, "s", how)

    def _launch_in_graph(self) -> Found:
        run, count = self._launches(), self.scaled(LAUNCHES)
        what = f"an empty Triton kernel {count} times"
        if self.is_gpu:
            graph, what = torch.cuda.CUDAGraph(), f"{what} in a CUDA graph"
            synchronize(self.device)
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
        took = timed(run, self.device)
        return Found(took.seconds / count, "s", f"{what}, median of {took.repeats}")

    def _clock_under_load(self) -> Found:
        """What nvidia-smi reads while products keep the multiprocessors busy."""
        n = self.scaled(8192)
        a, b = self.random(n, n), self.random(n, n)
        each = timed(lambda: torch.mm(a, b), self.device).seconds
        for _ in range(int(min(LOAD_SECONDS / each, LOAD_PRODUCTS)) if self.is_gpu else 1):
            torch.mm(a, b)
        properties = torch.cuda.get_device_properties(self.device) if self.is_gpu else None
        try:
            value = 1e6 * _read_clock(f"GPU-{properties.uuid}" if properties else None)
        finally:
            synchronize(self.device)
        return Found(value, "Hz", f"nvidia-smi clocks.sm during products of {n} cubed")


def _read_clock(identity: str | None) -> float:
    """Megahertz of the GPU's multiprocessors now; reading changes no setting."""
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    command += [f"--id={identity}"] if identity else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unreadable(f"{' '.join(command)}: {error}") from None
