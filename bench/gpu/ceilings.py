"""The constants of a GPU that the prediction needs, each measured: phase 0 of ``bench/gpu.sh``.

    python -m bench.gpu.ceilings [--device DEVICE] [--suite full|smoke] --out FILE

FILE is JSON, written anew after every constant, so that a run that is cut off keeps what it had:

    {"device": bench.machine.describe(device),
     "suite": "full" or "smoke" (tiny shapes: a rehearsal, of no meaning),
     "constants": {NAME: {"value": number, "unit": text, "how": text}},
     "missing": {NAME: why it could not be measured}}

NAME is one of

    multiprocessors, l2_bytes, clock          what the driver says
    product_8192                              torch.mm of 8192 cubed, bfloat16
    S_kK, S_kK_float32, K in 512, 768, 1024   S in bfloat16, and in float32
    l2_read                                   16 MB read from L2 again and again
    copy                                      device to device, bytes read and written
    add_float32                               sum += product, bytes read and written
    dx_HxW, dy_HxW, HxW in models.rates.CHUNKS dX = dS Y and dY = dS^T X of a chunk, into float32
    float32_ieee, float32_tf32                S with float32 features
    launch, launch_in_graph                   an empty kernel
    clock_under_load                          of the multiprocessors, while they multiply

Rates are medians over calls after a warm-up, on random data, by events in the stream (by the
host's clock on a CPU). A CPU takes the smoke suite only, with TRITON_INTERPRET=1. What L2 sustains
beside a product cannot be timed apart: bench/models/rates.py scales a documented share of the
stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu.constants import Constants, Suite, Unreadable
from bench.gpu.results import Results
from bench.machine import describe
from mxm_kernels.backends.triton import launch


def measure(device: torch.device, suite: Suite, keep: Callable[[dict], None]) -> None:
    """Measure every constant on ``device``; ``keep`` gets all results so far after each.

    What cannot be measured is in ``missing`` with its reason, and the others are still measured.

    Raises:
        ValueError: the suite is unknown, or a CPU is to run at full size.
        RuntimeError: a CPU without Triton's interpreter.
    """
    if suite not in ("full", "smoke"):
        raise ValueError(f"suite: expected 'full' or 'smoke', got {suite!r}")
    if device.type != "cuda":
        if suite == "full":
            raise ValueError(f"suite: expected 'smoke' on {device}, got 'full', which needs a GPU")
        if not launch.interpreted():
            raise RuntimeError(
                f"device: {device} needs TRITON_INTERPRET=1 in the environment before Python starts"
            )
    constants: dict[str, dict] = {}
    missing: dict[str, str] = {}
    results = {
        "device": describe(device), "suite": suite, "constants": constants, "missing": missing,
    }  # fmt: skip
    for name, run in Constants(device, suite).measurements():
        try:
            constants[name] = run()._asdict()
        except (Unreadable, RuntimeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
        keep(results)


# What some machines do not let a program read; all else must be there.
OPTIONAL = ("l2_bytes", "clock", "clock_under_load")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--suite", default="full", choices=("full", "smoke"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.unlink(missing_ok=True)  # nothing of an earlier run is to be kept
    results = Results(arguments.out)
    measure(torch.device(arguments.device), arguments.suite, results.keep)
    last = results.read()
    for name, found in last["constants"].items():
        print(f"{name:20} {found['value']:.4g} {found['unit']}")
    for name, why in last["missing"].items():
        print(f"{name:20} missing: {why}")
    sys.exit(any(name not in OPTIONAL for name in last["missing"]))


if __name__ == "__main__":
    main()
