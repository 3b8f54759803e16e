"""The page of what an H100 could do: a step's kernels, chunk products, additions and floors.

    python -m bench.models.predict [--ceilings FILE] [--out FILE]

``step_model.py`` is the arithmetic. The first FILE is that of ``bench/gpu/ceilings.py``, by default
bench/results/ceilings.json if it is there; without it the rates are documented ones. Run it after
``make machine-code``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.markdown import seconds, table
from bench.models.rates import CEILINGS, Rates, read
from bench.models.step_model import CASES, REST, Step, chunks, step
from bench.results_file import RESULTS

UNITS = ("shared memory", "L2", "dS to memory", "exponentials", "instructions", "shuffles")
STEP_LAUNCHES = 14  # of MFH at 420 x 350, which tests/bench/test_calls.py counts


def _of_kernels(steps: list[Step]) -> str:
    rows = []
    for s in steps:
        for name, k in (("statistics", s.statistics), ("dS", s.dS)):
            times = {"dS to memory": 0.0, **k.units, **k.after}
            cells = [seconds(times[unit]) if times[unit] else "-" for unit in UNITS]
            row = [s.case.name, name, k.tile, str(k.programs), seconds(k.product), *cells]
            rows.append([*row, k.limit, seconds(k.seconds)])
    head = ["case", "kernel", "tile", "programs", "product", *UNITS, "limited by", "time"]
    return table(head, rows)


def _of_chunks(steps: list[Step], rates: Rates) -> str:
    rows = []
    for s in steps:
        c = s.gradient.costs
        row = [s.case.name, f"{c.height:,} x {c.width:,}", str(c.chunks)]
        for count, took in ((c.dx_tiles, s.gradient.dx), (c.dy_tiles, s.gradient.dy)):
            share = f"{s.case.unit / took / rates.cubed:.0%}"
            row += [f"{count}, {rates.waves(count)}", f"{seconds(took)} ({share})"]
        rows.append([*row, f"{c.added_bytes / 1e9:.2f} GB", seconds(s.gradient.additions)])
    head = ["case", "chunk", "chunks", "dX: tiles, waves", "dX", "dY: tiles, waves", "dY"]
    return table([*head, "additions", "additions take"], rows)


def _of_steps(steps: list[Step]) -> str:
    rows = []
    for s in steps:
        parts = [s.statistics.seconds, s.dS.seconds, s.gradient.dx + s.gradient.dy]
        parts += [s.gradient.additions, REST, s.seconds, s.floor, s.cubed]
        shares = [f"{s.floor / s.seconds:.0%}", f"{s.cubed / s.seconds:.0%}"]
        rows.append([s.case.name, f"{s.case.products} U", *map(seconds, parts), *shares])
    head = ["case", "operations", "statistics", "dS", "dX and dY", "additions", "rest", "step"]
    head += ["benchmark's floor", "at the 8192-cubed rate", "share of the floor"]
    return table([*head, "share of the 8192-cubed rate"], rows)


def page(records: list[dict[str, Any]], rates: Rates) -> str:
    """The page."""
    steps = [step(case, records, chunks(case), rates) for case in CASES]
    status = "rates measured, steps not" if rates.file else "not measured"
    l2, stream, cubed = map(_tera, (rates.l2_product, rates.l2_stream, rates.cubed))
    of_cube = f"{rates.product(768) / rates.cubed:.0%}"
    return f"""# Predictions for {rates.gpu}: {status}

`python -m bench.models.predict` computes them. No kernel was timed for this page. Its rates:
{rates.source} (`bench/models/rates.py`).

The time that each unit needs for all tiles of a kernel. L2 gives a product {l2}B/s, a stream
{stream}B/s. No product is faster than the vendor's at the same K (at K 768 {of_cube} of the
{cubed}FLOP/s of 8192 cubed). Two programs on a multiprocessor hide the units in one another,
and the slowest is the kernel's time. With one program the slowest of exponentials, instructions and
shuffles follows the product.

{_of_kernels(steps)}

dX and dY are the vendor's products of a chunk of dS at a time, in tiles of 128 x 256 or of half of
that, on {rates.processors} multiprocessors (in brackets: share of the 8192-cubed rate). Results of
several chunks are added to a sum in float32 by a second pass; a product that adds in place, where
PyTorch has it, moves two thirds as much. The workspace is that of a card with 40 GB or more.

{_of_chunks(steps, rates)}

The floor of a step is that of its own way, S and T computed twice: 6 U with a teacher, 4 U without.
The benchmark's floor is those products alone, as the vendor's BLAS is taken to run them at these
shapes. The other is the same operations at the rate of the 8192-cubed product, which is harder.
The rest of a step, {seconds(REST)}, is an assumption.

{_of_steps(steps)}

The smallest batch, 420 x 350, is {STEP_LAUNCHES} launches, at {seconds(rates.launch)} each in a
CUDA graph {seconds(STEP_LAUNCHES * rates.launch)}, before any of them does anything.
"""


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g} T"


def default_rates(path: Path = CEILINGS) -> Rates:
    """The rates of the ceilings file where there is one, else the documented ones."""
    return read(path) if path.exists() else Rates()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ceilings", type=Path, help="rates of bench/gpu/ceilings.py")
    parser.add_argument("--out", type=Path, help="write the page as Markdown")
    arguments = parser.parse_args()
    try:
        rates = read(arguments.ceilings) if arguments.ceilings else default_rates()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    text = page(json.loads((RESULTS / "machine_code.json").read_text()), rates)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
