"""One step of InfoNCE on a batch that no matrix fits beside, checked on a sample of its rows.

    python -m bench.studies.largest [--rows N] [--device DEVICE] [--out FILE]

A million images and a million texts by default: S would have 10**12 entries. No reference computes
all of them in float64, so a sample of rows and of columns is held to it: their log-sum-exp over
everything, and their gradients, for which the rest's log-sum-exp is taken from the run. FILE is a
table in Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from bench import machine
from bench.batch import Batch
from bench.cases import pairs
from bench.gate import WrongAnswerError
from bench.markdown import table
from mxm_kernels import Folds, backends, fused_info_nce_loss
from mxm_kernels.ops.statistics import statistics
from tests.support.compare import allowed, error
from tests.support.memory import peak_bytes

ROWS, DIMENSION, SAMPLE = 1_000_000, 512, 128
WARM_UP = 4096  # rows of the step that compiles
COLUMNS = 1 << 16  # of the sample's similarities in float64 at a time


class Step(NamedTuple):
    """What one step took."""

    seconds: float
    peak_bytes: int  # beyond inputs and gradients


def step(batch: Batch) -> Step:
    """Run a step once, for its time and its memory; a smaller one compiles the kernels before.

    On a CPU the seconds include the profiler, which counts the memory.
    """

    def run() -> None:
        batch.clear()
        fused_info_nce_loss(batch.x, batch.y, logit_scale=batch.scale).backward()
        batch.scale.grad.item()  # type: ignore[union-attr]  # until the device is done

    began = perf_counter()
    peak = peak_bytes(run, batch.x.device)
    seconds = perf_counter() - began
    gradients = sum(v.grad.nbytes for v in batch.leaves.values() if v.grad is not None)
    return Step(seconds, max(0, peak - gradients))


def check(batch: Batch) -> dict[str, tuple[float, float]]:
    """Error and bound of the sample's log-sum-exp and gradients, by name.

    Raises:
        WrongAnswerError: one is not as good as its dtype allows.
    """
    x, y, s = batch.x.detach(), batch.y.detach(), batch.scale.detach()
    tables = Folds.uniform(1, 1).tables(len(x), len(y), x.device)
    name = backends.choose(None, x.device, x.dtype)  # as the step did
    found = statistics(x, y, None, s, None, tables, name)
    # Each row has one positive: the list of the positives is that of the rows.
    lse = torch.logaddexp(found.neg_lse.double(), found.positives.double())
    of_images, of_texts = lse[: len(x)], lse[len(x) :]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(x), generator=generator)[:SAMPLE].to(x.device)
    assert batch.x.grad is not None and batch.y.grad is not None
    errors = {}
    for side, own, others, a, b, grad in (
        ("image", of_images, of_texts, x, y, batch.x.grad),
        ("text", of_texts, of_images, y, x, batch.y.grad),
    ):
        exact, expected = _sampled(a, b, s.double(), rows, others)
        for what, got, want, dtype in (
            ("log-sum-exp", own[rows], exact, torch.float32),
            ("gradient", grad[rows], expected, x.dtype),
        ):
            wrong, limit = error(got, want), allowed(dtype, float(want.norm()), 0.0)
            errors[f"{side} {what}"] = wrong, limit
            if not wrong <= limit:
                raise WrongAnswerError(f"{side} {what}: error {wrong:.3g}, allowed {limit:.3g}")
    return errors


def _sampled(
    a: Tensor, b: Tensor, s: Tensor, rows: Tensor, others: Tensor
) -> tuple[Tensor, Tensor]:
    """In float64, of some rows of a: log-sum-exp over all of b, and the gradient of the loss.

    ``others`` (N,) are the log-sum-exps of the rows of b.
    """
    x = a[rows].double()
    parts = [
        torch.logsumexp(s * (x @ b[at : at + COLUMNS].double().T), 1)
        for at in range(0, len(b), COLUMNS)
    ]
    lse = torch.logsumexp(torch.stack(parts), 0)
    total = torch.zeros_like(x)
    for at in range(0, len(b), COLUMNS):
        y = b[at : at + COLUMNS].double()
        S = s * (x @ y.T)
        dS = (S - lse[:, None]).exp() + (S - others[at : at + COLUMNS]).exp()
        total += dS @ y
    return lse, s * (total - 2 * b[rows].double()) / (2 * len(a))


def page(batch: Batch, took: Step, errors: dict[str, tuple[float, float]]) -> str:
    """What was measured, and where."""
    where = machine.describe(batch.x.device)
    facts = [
        ["machine", where["gpu"] or where["cpu"]],
        ["commit", where["commit"] or where["source"]],
        ["batch", batch.case.name],
        ["a step, forward and backward", f"{took.seconds:.2f} s"],
        ["memory over inputs and gradients", f"{took.peak_bytes / 2**20:,.0f} MiB"],
        ["S alone", f"{batch.case.M * batch.case.N * batch.x.element_size() / 2**30:,.0f} GiB"],
        *([f"error of {k}", f"{e:.2e}, allowed {a:.2e}"] for k, (e, a) in errors.items()),
    ]
    return table(["", ""], facts) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help=f"images and texts, {ROWS:,}")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    case = pairs(arguments.rows, DIMENSION, teacher=False, dtype="bfloat16")
    step(Batch.make(replace(case, M=WARM_UP, N=WARM_UP), arguments.device))
    batch = Batch.make(case, arguments.device)
    took = step(batch)
    text = page(batch, took, check(batch))
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
