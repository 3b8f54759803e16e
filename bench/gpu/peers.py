"""Phase 6: other packages and the dense computation, each interleaved with ours on its own.

A computation that compiles for long comes last, so the bound cuts off little else.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from bench.batch import Batch
from bench.cases import Case, pairs
from bench.gate import Gate
from bench.gpu.headline import KEEPS, release
from bench.gpu.phases import Run, WrongError
from bench.providers import named
from bench.run import Refused, is_fault, prepared
from bench.timing import interleave
from mxm_kernels.memory import memory_budget

SECONDS, FEWEST = 1.0, 3


def duels(smoke: bool) -> list[tuple[Case, str]]:
    """Cases, and who is measured against ours on them."""
    bf16: dict[str, Any] = {"dtype": "bfloat16"}
    n, large, D = (24, 24, 16) if smoke else (16_384, 65_536, 768)
    mfh, clip = pairs(n, D, **bf16), pairs(large, D, teacher=False, **bf16)
    siglip = replace(clip, sigmoid=True)
    found = [(siglip, "siglip-kernel"), (clip, "memeff"), (mfh, "dense eager")]
    found += [(mfh, "chunked PyTorch"), (replace(clip, M=n, N=n), "open_clip ClipLoss")]
    found += [(clip, name) for name in ("inf-cl", "cut-cross-entropy", "liger-kernel")]
    return [*found, (mfh, "dense torch.compile")] if not smoke else found


def phase(run: Run) -> None:
    """One duel after the other, each kept as it ends."""
    found: dict[str, Any] = {}
    for case, other in duels(run.smoke):
        with memory_budget(KEEPS):
            found[f"{other}, {case.name}"] = duel(case, other, run)
        run.keep({"peers": found})
        release(run.device)


def duel(case: Case, other: str, run: Run) -> dict[str, Any]:
    """Milliseconds of both, and ours over theirs; or why there are none."""
    gate, entries = Gate(Batch.make(case, run.device)), []
    for name in (other, "triton"):  # what is not installed costs no gate
        try:
            entries.append(prepared(named(name, case), gate, run.device))
        except Refused as reason:
            if name == "triton" and is_fault(str(reason)):
                raise WrongError(f"triton on {case.name}: {reason}") from reason
            return {"refused": f"{name}: {reason}"}
    interleave(entries, 0.05 if run.smoke else SECONDS, FEWEST)
    theirs, ours = (1e3 * median(entry.seconds["both"]) for entry in entries)
    return {"milliseconds": {"ours": ours, "theirs": theirs}, "ours_over_theirs": ours / theirs}
