"""Time a training step of this checkout against another's, in two processes that take turns.

    python -m bench.against TREE [--case MxNxD ...] [--repeats 5] [--out FILE]

TREE is a folder with another ``mxm_kernels`` and its extension, such as what ``pip install
--no-deps --no-build-isolation --target TREE CHECKOUT`` leaves. A step is forward and backward of
MFH on the native backend, with 10 rounds and a teacher. The processes time blocks of steps in
turn, so a machine that slows down slows both; a run's ratio is this checkout's median step over
TREE's. "Of all turns" is the median ratio of two blocks in a row, which a busy machine disturbs
least. The processes call public functions alone, whatever lies behind them. FILE is Markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import chain
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from bench.batch import Batch
from bench.cases import LARGE, Case, paper
from bench.markdown import seconds, table

ROOT = Path(__file__).parents[1]
HEAD = ["case", "this / TREE, each run", "median", "of all turns", "this", "TREE"]
Turn = list[list[float]]  # the seconds of a block's steps, this checkout's and TREE's
BLOCK_SECONDS, MOST_STEPS = 0.1, 100  # of a block
# The package comes from the path that is given, this file and bench/ from this checkout.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import mxm_kernels; "
    "sys.path[0] = sys.argv[2]; from bench.against import work; work(mxm_kernels)"
)


class Worker:
    """A process with a tree's ``mxm_kernels``, or with the one that is imported here (None)."""

    def __init__(self, tree: Path | None, threads: int) -> None:
        # Without site (-S) no .pth file puts an editable installation before the tree.
        flags = [] if tree is None else ["-S"]
        path = json.dumps([str(tree or ROOT), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", _START, path, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.package: str = self._answer()

    def seconds(self, case: Case, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        print(json.dumps([asdict(case), steps]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError("a worker ended; its error stands above")
        return json.loads(answer)


def work(package: Any) -> None:
    """What a worker does: say where its package is, then time steps until its input ends."""
    gc.disable()
    print(json.dumps(str(Path(package.__file__).parent)), flush=True)
    step = cache(lambda case: _step(package.fused_mfh_loss, Batch.make(case, torch.device("cpu"))))
    for question in sys.stdin:
        fields, steps = json.loads(question)
        run = step(Case(**fields))
        gc.collect()  # which is off otherwise
        print(json.dumps([_time(run) for _ in range(steps)]), flush=True)


def _step(loss: Callable, batch: Batch) -> Callable[[], None]:
    inputs = (batch.x, batch.y, (batch.case.views, batch.case.captions))
    teacher = {"teacher_image_features": batch.teacher_x, "teacher_text_features": batch.teacher_y}
    options = {"logit_scale": batch.scale, "rounds": batch.case.rounds, "backend": "native"}

    def step() -> None:
        batch.clear()
        loss(*inputs, **teacher, **options).backward()

    return step


def _time(step: Callable[[], None]) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def compare(workers: list[Worker], case: Case, repeats: int, turns: int) -> list[list[Turn]]:
    """The turns of every run."""
    warm = [worker.seconds(case, 3) for worker in workers]
    steps = int(min(max(BLOCK_SECONDS / min(map(min, warm)), 1), MOST_STEPS))
    turn = range(turns)
    return [[[w.seconds(case, steps) for w in workers] for _ in turn] for _ in range(repeats)]


def row(case: Case, runs: list[list[Turn]]) -> list[str]:
    """What the table says: ratios of every run and of neighbouring blocks, and the seconds."""
    medians = [[median(chain(*own)) for own in zip(*turns, strict=True)] for turns in runs]
    ratios = [this / other for this, other in medians]
    of_turns = median(median(this) / median(other) for this, other in chain(*runs))
    steps = [seconds(median(own)) for own in zip(*medians, strict=True)]
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    return [case.name, each, f"{median(ratios):.3f}", f"{of_turns:.3f}", *steps]


def _case(text: str) -> Case:
    """420x350x512 is of instances of 6 x 5; 80x400x512x1x5 names their images and texts."""
    M, N, D, *folds = map(int, text.split("x"))
    return Case(M, N, D, *folds)  # type: ignore[arg-type]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--case", type=_case, nargs="+", default=[*paper(512), LARGE])
    parser.add_argument("--repeats", type=int, default=5, help="runs, each with its ratio")
    parser.add_argument("--turns", type=int, default=10, help="blocks of each in a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    extension = str(options.tree.resolve() / "mxm_kernels" / "_native")
    if not any(Path(extension + suffix).exists() for suffix in EXTENSION_SUFFIXES):
        parser.error(f"{options.tree} has no mxm_kernels with a built extension; see --help")
    workers = [Worker(tree, options.threads) for tree in (None, options.tree.resolve())]
    print(*(worker.package for worker in workers), " | ".join(HEAD), sep="\n")
    rows = []
    for case in options.case:
        rows.append(row(case, compare(workers, case, options.repeats, options.turns)))
        print(*rows[-1], sep=" | ", flush=True)
    for worker in workers:
        worker.process.communicate()  # its input ends, and so does it
    if options.out:
        options.out.write_text(table(HEAD, rows) + "\n")


if __name__ == "__main__":
    main()
