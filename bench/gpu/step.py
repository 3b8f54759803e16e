"""One training step of a headline loss, on a batch that takes no time.

    python -m bench.gpu.step mfh|info_nce|siglip|mfh_float32 DEVICE [--rows N | --smoke]

Running it compiles its kernels into Triton's cache; the tools of the second part watch it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from bench.batch import Batch
from bench.cases import Case, pairs
from bench.providers import ours, sigmoid

CASES: dict[str, Callable[[int, int], Case]] = {
    "mfh": partial(pairs, dtype="bfloat16"),
    "info_nce": partial(pairs, teacher=False, dtype="bfloat16"),
    "siglip": partial(pairs, teacher=False, sigmoid=True, dtype="bfloat16"),
    "mfh_float32": lambda rows, D: Case(rows // 6 * 6, rows // 6 * 5, D),
}


def step(case: Case, device: torch.device) -> None:
    """Forward and backward."""
    batch = Batch.make(case, device)
    loss = (sigmoid if batch.case.sigmoid else ours).loss("triton", batch)
    loss.backward()
    assert torch.isfinite(loss).item() and batch.x.grad is not None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=CASES)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--smoke", action="store_true", help="30 rows of 16 numbers")
    options = parser.parse_args()
    rows, D = (30, 16) if options.smoke else (options.rows, 768)
    step(CASES[options.name](rows, D), options.device)


if __name__ == "__main__":
    main()
