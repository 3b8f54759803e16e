"""What offsets, ids and a filter cost a training step, beside the same step without them.

    python -m bench.studies.told [--out FILE]

On a CPU, on the backends native and blocked, in one process. The steps of a case run in turns, and
a ratio is the median over the turns of the ratio in a turn: a machine that slows down slows both.
The time is the processor's, on one thread: other programs do not add to it. "nothing" is the step
without an input a second time: its ratio is what noise makes of equal steps. FILE is a page in
Markdown, and the numbers go beside it as JSON. It takes about five minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import machine
from bench.batch import Batch
from bench.cases import PAPER, Case
from bench.markdown import seconds, table
from bench.studies import command
from bench.timing import MOST_REPEATS
from mxm_kernels import Folds, fused_info_nce_loss, fused_mfh_loss, fused_siglip_loss

CPU = torch.device("cpu")
SIZES = ((420, 350), (1800, 1500))
WIDTH, DTYPES, BACKENDS = PAPER.D, ("float32", "bfloat16"), ("native", "blocked")
USERS, CLUSTERS, MARGIN = 70, 4, 0.1
SECONDS, FEWEST = 3.0, 3  # of each case; turns, at least
BEFORE, AGAIN, EVERYTHING = "before", "nothing", "all of them"

Told = dict[str, Any]


class Measured(NamedTuple):
    """A loss, and the inputs that are timed with it."""

    loss: Callable[..., Tensor]
    options: Told
    taught: bool  # it has a teacher without a filter too
    inputs: tuple[str, ...]


ALL = "offsets", "exclude_ids", "within_ids", "filter_margin"
LOSSES = {
    "MFH with a teacher": Measured(fused_mfh_loss, {"rounds": None}, True, ALL),
    "MFH, hard_weight=1": Measured(
        fused_mfh_loss, {"rounds": None, "hard_weight": 1.0}, False, ("filter_margin",)
    ),
    "InfoNCE": Measured(fused_info_nce_loss, {}, False, ALL),
    "SigLIP": Measured(fused_siglip_loss, {"logit_bias": -10.0}, False, ALL[:3]),
}


def told(batch: Batch, name: str) -> Told:
    """The options of one input."""
    generator = torch.Generator().manual_seed(1)

    def pair(make: Callable[[tuple[int]], Tensor]) -> tuple[Tensor, Tensor]:
        return make((len(batch.x),)), make((len(batch.y),))

    if name == "offsets":
        images, texts = pair(partial(torch.randn, generator=generator))
        return {"image_offsets": images.requires_grad_(), "text_offsets": texts.requires_grad_()}
    if name == "exclude_ids":
        return {name: pair(partial(torch.randint, USERS, generator=generator))}
    if name == "within_ids":
        return {name: pair(partial(torch.randint, -1, CLUSTERS, generator=generator))}
    return {name: MARGIN}


def step_of(measured: Measured, batch: Batch, backend: str, names: tuple[str, ...]):
    """The step of a loss with some inputs, forward and backward."""
    given: Told = {}
    for name in names:
        given |= told(batch, name)
    if measured.taught or "filter_margin" in given:
        given["teacher_image_features"] = batch.teacher_x
        given["teacher_text_features"] = batch.teacher_y
    offsets = [given[name] for name in ("image_offsets", "text_offsets") if name in given]
    folds = Folds.uniform(batch.case.views, batch.case.captions)

    def step() -> Tensor:
        batch.clear()
        for leaf in offsets:
            leaf.grad = None
        options = {"logit_scale": batch.scale, "backend": backend, **measured.options, **given}
        loss = measured.loss(batch.x, batch.y, folds, **options)
        loss.backward()
        return loss.detach()

    return step


def inputs_of(measured: Measured) -> dict[str, tuple[str, ...]]:
    """What each step of a case is given, by the name of the step."""
    made = {BEFORE: (), AGAIN: (), **{name: (name,) for name in measured.inputs}}
    return made | ({EVERYTHING: measured.inputs} if len(measured.inputs) > 1 else {})


def turns(steps: dict[str, Callable[[], Tensor]], budget: float) -> dict[str, list[float]]:
    """The processor's seconds of every step in every turn, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2):  # to warm up
        start = perf_counter()
        for step in steps.values():
            step()
    rounds = min(max(int(budget / (perf_counter() - start)), FEWEST), MOST_REPEATS)
    for _ in range(rounds):
        for name, step in steps.items():
            start = process_time()
            step()
            spent[name].append(process_time() - start)
    torch.set_num_threads(threads)
    return spent


def measure(name: str, case: Case, backend: str, budget: float) -> list[dict[str, Any]]:
    """A record for each input of a loss on a batch."""
    steps = {
        label: step_of(LOSSES[name], Batch.make(case, CPU), backend, inputs)
        for label, inputs in inputs_of(LOSSES[name]).items()
    }
    spent = turns(steps, budget)
    about = {
        "loss": name,
        "batch": f"{case.M:,} x {case.N:,} x {case.D}",
        "dtype": case.dtype,
        "backend": backend,
    }
    return [
        about
        | {
            "input": label,
            "turns": len(taken),
            "seconds": median(taken),
            "ratio": median(own / b for own, b in zip(taken, spent[BEFORE], strict=True)),
        }
        for label, taken in spent.items()
    ]


def cases() -> list[Case]:
    """The batches."""
    return [Case(*size, WIDTH, dtype=dtype) for size, dtype in product(SIZES, DTYPES)]


def measured() -> list[dict[str, Any]]:
    """The records of every loss, batch and backend."""
    where = machine.describe(CPU)
    about = {name: where[name] for name in ("cpu", "cpu_capability", "cores", "commit", "date")}
    about["torch"] = where["versions"]["torch"]
    made = []
    for name, case, backend in product(LOSSES, cases(), BACKENDS):
        made += [r | {"machine": about} for r in measure(name, case, backend, SECONDS)]
    return made


def _key(record: dict[str, Any]) -> tuple:
    return record["backend"], record["batch"], record["dtype"]


def table_of(records: list[dict[str, Any]], name: str) -> str:
    """The table of one loss: a line for each backend and batch, a column for each input."""
    lines: dict[tuple, dict[str, Any]] = {}
    for record in records:
        if record["loss"] == name:
            lines.setdefault(_key(record), {})[record["input"]] = record
    inputs = [label for label in inputs_of(LOSSES[name]) if label != BEFORE]
    head = ["backend", "batch", "features", "the step", *inputs]
    return table(
        head,
        [
            [*map(str, key), seconds(line[BEFORE]["seconds"])]
            + [f"{line[label]['ratio']:.2f}" for label in inputs]
            for key, line in sorted(lines.items())
        ],
    )


def ranges(records: list[dict[str, Any]]) -> str:
    """The least and the greatest ratio of each loss and backend, over batches."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        of_input = found.setdefault((r["loss"], r["backend"]), {})
        of_input.setdefault(r["input"], []).append(r["ratio"])
    inputs = [AGAIN, *ALL, EVERYTHING]

    def cell(ratios: list[float]) -> str:
        return f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""

    return table(
        ["loss", "backend", *inputs],
        [[*key, *(cell(line.get(name, [])) for name in inputs)] for key, line in found.items()],
    )


def page(records: list[dict[str, Any]]) -> str:
    """The page of all tables."""
    where = records[0]["machine"]
    fewest = min(r["turns"] for r in records)
    tables = "\n\n".join(f"## {name}\n\n{table_of(records, name)}" for name in LOSSES)
    return f"""# What offsets, ids and a filter cost a step

Each number is the time of a training step with an input over the time of the same step without it.
"the step" is the time without. "nothing" is the step without an input, timed a second time: the
other numbers may be as far off as it is from 1. A step is forward and backward to both feature
sets, the scale and the offsets. The steps of a line ran in {fewest} to {MOST_REPEATS} turns, and a
number is the median over the turns. The time is the processor's, on one thread. Other programs used
the machine at the same time.

- **offsets**: `image_offsets` and `text_offsets`, both with gradients.
- **exclude_ids**: each row has one of {USERS} ids. **within_ids**: one of {CLUSTERS}, or -1.
- **filter_margin** is {MARGIN}. In MFH with a teacher T is computed anyway. In InfoNCE, and in MFH
  with `hard_weight=1`, the step without the filter has no teacher. There the ratio contains the
  matrix products of the guide's features.
- MFH has `rounds=None`. Instances have 6 images and 5 texts.

{where["cpu"]} ({where["cpu_capability"]}), {where["cores"]} cores, torch {where["torch"]}, commit
{where["commit"]}, {where["date"]}.
`python -m bench.studies.told` writes this page.

The least and the greatest ratio over the batches and dtypes below:

<!-- --8<-- [start:table] -->
{ranges(records)}
<!-- --8<-- [end:table] -->

{tables}
"""


if __name__ == "__main__":
    command.run(__doc__, measured, page)
