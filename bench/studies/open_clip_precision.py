"""Under autocast, whose CLIP loss is nearer to the float64 loss of the same features.

    python -m bench.studies.open_clip_precision [--out FILE]

open_clip multiplies features under autocast, so that its logits are rounded to float16 or bfloat16
before the softmax. This package reads the features in 16 bits, and keeps products and sums in
float32. A model returns features in 16 bits (the last product of its towers), or in float32 where
PyTorch normalises in float32; then both losses round them first.
FILE is a table in Markdown, and the numbers go beside it as JSON.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.markdown import table
from bench.studies import command
from mxm_kernels.open_clip import ClipLoss

ROWS, WIDTH, BATCHES = 128, 512, 20
NOISE = 8.0  # of a text around its image, in lengths of a row: the loss is neither 0 nor log(ROWS)
DTYPES, GIVEN, SCALES = (torch.float16, torch.bfloat16), ("16 bits", "float32"), (14.3, 100.0)
VERSIONS = {"open_clip_torch": open_clip.__version__, "torch": torch.__version__.partition("+")[0]}
LOSSES = {"open_clip": open_clip.ClipLoss, "mxm_kernels": ClipLoss}


def batch(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Image and text features, (rows, WIDTH) each, in float32."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, rows, WIDTH, generator=generator)
    return normalize(x, dim=1), normalize(normalize(x, dim=1) + NOISE * noise / WIDTH**0.5, dim=1)


def step(
    loss: nn.Module, pair: tuple[Tensor, Tensor], scale: float, autocast: torch.dtype | None
) -> tuple[float, Tensor]:
    """The value, and the gradients of both features (2 rows, WIDTH), in float64."""
    x, y = (f.clone().requires_grad_() for f in pair)
    s = torch.tensor(scale, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        value = loss(x, y, s)
    value.backward()
    assert x.grad is not None and y.grad is not None
    return value.double().item(), torch.cat([x.grad, y.grad]).double()


def errors(pair: tuple[Tensor, Tensor], scale: float, autocast: torch.dtype) -> dict[str, Any]:
    """Of each loss: of the value, absolute, and of the gradient, relative in its norm."""
    exact = open_clip.ClipLoss()
    value, gradient = step(exact, (pair[0].double(), pair[1].double()), scale, None)
    found = {}
    for name, kind in LOSSES.items():
        mine, its = step(kind(), pair, scale, autocast)
        relative = float((its - gradient).norm() / gradient.norm())
        found[name] = {"value": abs(mine - value), "gradient": relative}
    return found


def record(autocast: torch.dtype, given: str, scale: float, batches: int = BATCHES) -> dict:
    """Medians over the batches, and in how many of them this package is nearer."""
    found = []
    for seed in range(batches):
        x, y = batch(seed)
        pair = (x.to(autocast), y.to(autocast)) if given == "16 bits" else (x, y)
        found.append(errors(pair, scale, autocast))
    made: dict[str, Any] = {"autocast": str(autocast).removeprefix("torch."), "features": given}
    made |= {"scale": scale, "batches": batches, **VERSIONS}
    for what in "value", "gradient":
        theirs, ours = (torch.tensor([f[name][what] for f in found]) for name in LOSSES)
        made[what] = {
            "open_clip": float(theirs.median()),
            "mxm_kernels": float(ours.median()),
            "nearer": int((ours < theirs).sum()),
        }
    return made


def page(records: list[dict[str, Any]]) -> str:
    """The table."""
    head = ["autocast", "features", "scale"]
    for what in "value", "gradient":
        head += [f"error of the {what}: open_clip", "this package", "nearer in"]
    rows = []
    for r in records:
        row = [r["autocast"], r["features"], f"{r['scale']:g}"]
        for what in "value", "gradient":
            numbers = r[what]
            row += [f"{numbers[name]:.1e}" for name in LOSSES]
            row.append(f"{numbers['nearer']} of {r['batches']}")
        rows.append(row)
    versions = ", ".join(f"{name} {records[0][name]}" for name in VERSIONS)
    return f"""# CLIP's loss under autocast: its error

{BATCHES} batches of {ROWS} pairs of random features with {WIDTH} dimensions, a text near its image,
on a CPU. Exact is the loss of the same features in float64. Errors are medians. That of the value
is absolute, that of the features' gradient relative, in its norm. {versions}.
`python -m bench.studies.open_clip_precision` writes this page.

<!-- --8<-- [start:table] -->
{table(head, rows)}
<!-- --8<-- [end:table] -->
"""


def measured() -> list[dict[str, Any]]:
    """The records of every case."""
    return [record(*case) for case in product(DTYPES, GIVEN, SCALES)]


if __name__ == "__main__":
    command.run(__doc__, measured, page)
