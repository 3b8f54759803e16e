"""Is a product of 16-bit factors added to float32 sums in place, and is it right?

    python -m bench.gpu.accumulation [--device cuda]

``torch.addmm(out_dtype=float32, out=sum)`` spares the gradients the float32 temporary of
``torch.mm(out_dtype=float32)`` and half of the memory traffic of its addition.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.clock import timed
from mxm_kernels.backends.tiles import accumulates
from tests.support.memory import peak_bytes

SHAPES = ((2048, 4096, 768), (11008, 11008, 768))  # (rows, depth) (depth, cols)
SMALL_SHAPES = ((64, 128, 48),)

InPlace = Callable[[Tensor, Tensor, Tensor, float], None]


def accumulation_probe(device: torch.device) -> dict[str, Any]:
    """Errors, repeatability, temporaries and seconds of sums in place, by dtype and product.

    Returns:
        ``{"bfloat16": {"accumulates": bool, "products": [...]}, "float16": ...}``. A dtype that is
        not added in place has no products.
    """
    shapes = SHAPES if device.type == "cuda" else SMALL_SHAPES
    report: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        able = accumulates(device, dtype)
        products = [
            product_report(device, dtype, shape, transposed, beta, add_in_place)
            for shape in shapes
            for transposed in (False, True)
            for beta in (1.0, 0.0)
            if able
        ]
        report[str(dtype).removeprefix("torch.")] = {"accumulates": able, "products": products}
    return report


def add_in_place(total: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """``total = beta total + a b``, in one call."""
    torch.addmm(total, a, b, beta=beta, out_dtype=torch.float32, out=total)


def add_temporary(total: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """The same for a beta of 0 or 1, through a product in memory of its own."""
    if a.device.type == "cuda":
        product = torch.mm(a, b, out_dtype=torch.float32)
    else:  # a CPU has no float32 product of 16-bit factors
        product = torch.mm(a.float(), b.float())
    total.copy_(product) if beta == 0 else total.add_(product)


def product_report(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    transposed: bool,
    beta: float,
    in_place: InPlace,
) -> dict[str, Any]:
    """One product: ``in_place`` against float64 and against ``add_temporary``."""
    a, b, start = _factors(device, dtype, shape, transposed)
    first, second, other = start.clone(), start.clone(), start.clone()
    in_place(first, a, b, beta)
    in_place(second, a, b, beta)
    add_temporary(other, a, b, beta)
    expected = torch.mm(a.double(), b.double()).add_(start.double(), alpha=beta)
    largest = expected.abs().max()
    errors = [((total - expected).abs().max() / largest).item() for total in (first, other)]
    return {
        "shape": list(shape),
        "transposed": transposed,
        "beta": beta,
        "max_relative_error": errors[0],
        "max_relative_error_mm_and_add": errors[1],
        "same_bits": torch.equal(first, second),
        "temporary_bytes": _temporary_bytes(lambda: in_place(second, a, b, beta), device),
        "seconds": timed(lambda: in_place(second, a, b, beta), device).seconds,
        "seconds_mm_and_add": timed(lambda: add_temporary(second, a, b, beta), device).seconds,
    }


def _factors(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, depth, cols = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    a = normal(depth, rows).T if transposed else normal(rows, depth)
    # As large as the product, so that what is lost of either shows.
    return a.to(dtype), normal(depth, cols).to(dtype), normal(rows, cols) * depth**0.5


def _temporary_bytes(run: Callable[[], None], device: torch.device) -> int | None:
    """Most memory that ``run`` took beside what was there; None on a CPU."""
    return peak_bytes(run, device) if device.type == "cuda" else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    print(json.dumps(accumulation_probe(device), indent=1))


if __name__ == "__main__":
    main()
