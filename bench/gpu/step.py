"""One training step of a headline loss, on a batch that takes no time.

    python -m bench.gpu.step mfh|info_nce|siglip|mfh_float32 DEVICE [--smoke]

Running it compiles its kernels into Triton's cache; the tools of the second part watch it.
"""

from __future__ import annotations

import argparse

import torch

from bench.batch import Batch
from bench.cases import Case, pairs
from bench.providers import ours, sigmoid

D = {"full": 768, "smoke": 16}
ROWS = {"full": 1024, "smoke": 30}


def case(name: str, suite: str) -> Case:
    """The batch of a loss."""
    rows, d = ROWS[suite], D[suite]
    made = {
        "mfh": pairs(rows, d, dtype="bfloat16"),
        "info_nce": pairs(rows, d, teacher=False, dtype="bfloat16"),
        "siglip": pairs(rows, d, teacher=False, sigmoid=True, dtype="bfloat16"),
        "mfh_float32": Case(30, 25, d),
    }
    return made[name]


def step(name: str, device: torch.device, suite: str) -> None:
    """Forward and backward."""
    batch = Batch.make(case(name, suite), device)
    loss = (sigmoid if batch.case.sigmoid else ours).loss("triton", batch)
    loss.backward()
    assert torch.isfinite(loss).item() and batch.x.grad is not None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    step(options.name, options.device, "smoke" if options.smoke else "full")


if __name__ == "__main__":
    main()
