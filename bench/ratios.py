"""What the targets look at: numbers that are found in records, one function for each kind.

A time is compared with another provider's, or with one of three floors:

* ``to_floor``: the matrix products of the step alone, timed in the same run at their own shapes
  (``bench/floor.py``). S and T are computed twice. There are six products with a teacher and four
  without, each of U = 2 M N D operations.
* ``to_kept_floor``: the same without the products that compute S and T again. It is for the cases
  whose memory budget has room for S and T.
* ``to_cubed``: as many operations as ``to_floor``, at the rate of the vendor's product of 8192
  cubed. The rate is from a ceilings file of the same GPU (``bench/gpu/ceilings.py``). This floor is
  the hardest: cuBLAS reaches 588 TFLOP/s at K 1024 and 661 at K 8192 (``bench/models/rates.py``).

The GPU's headline cases are held to the first and the third.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.cases import Case
from bench.results_file import Record, timed
from mxm_kernels.backends.triton.chunks import MOST_ROWS
from mxm_kernels.memory import CPU_DEFAULT, default_of_card

ROUNDS = ("rounds", "rounds of the paper")


def over_floor(provider: str, case: str, floor: str = "to_floor"):
    """Forward and backward as a multiple of one of ``FLOORS``."""

    def values(records: list[Record]) -> Iterator[float]:
        for r in timed(records):
            if (r["provider"], r["case"]["name"]) == (provider, case) and r.get(floor):
                yield r[floor]["both"]

    return values


def with_cubed(record: Record, cubed: dict[str, float]) -> Record:
    """The record with "to_cubed": its time over the time of 6 U or 4 U at its GPU's rate.

    ``cubed`` are rates of the 8192-cubed product in bfloat16 by GPU (``rates.cubed_rates``).
    A record of another machine or dtype, or of the sigmoid loss, whose products are others, stays
    as it is.
    """
    case, rate = record["case"], cubed.get(record["machine"].get("gpu"))
    if rate is None or "seconds" not in record or case["dtype"] != "bfloat16" or case["sigmoid"]:
        return record
    operations = Case.of_record(case).operations
    both = record["seconds"]["both"]["median"]
    return {**record, "to_cubed": {"both": both * rate / operations}}


def over_provider(provider: str, other: str, groups: str):
    """Time as a fraction of another provider's, in every case of the groups of that name."""

    def values(records: list[Record]) -> Iterator[float]:
        times = {
            (r["group"], r["case"]["name"], r["provider"]): r["seconds"]["both"]["median"]
            for r in timed(records)
            if r["group"] == groups or r["group"].startswith(f"{groups} ")
        }
        for (group, case, name), time in times.items():
            if name == provider and (group, case, other) in times:
                yield time / times[group, case, other]

    return values


def over_provider_everywhere(provider: str, other: str):
    """Time as a fraction of another provider's, wherever both were timed."""

    def values(records: list[Record]) -> Iterator[float]:
        for group in dict.fromkeys(r["group"] for r in timed(records)):
            yield from over_provider(provider, other, group)(
                [r for r in records if r["group"] == group]
            )

    return values


def over_another_loss(provider: str, case: str, other: str, others_case: str):
    """Time as a fraction of what another provider takes for another loss of the same batch."""

    def values(records: list[Record]) -> Iterator[float]:
        times = {
            (r["provider"], r["case"]["name"]): r["seconds"]["both"]["median"]
            for r in timed(records)
        }
        if {(provider, case), (other, others_case)} <= times.keys():
            yield times[provider, case] / times[other, others_case]

    return values


def microseconds(provider: str, case: str):
    """Forward and backward by the clock, where no ratio is asked for."""

    def values(records: list[Record]) -> Iterator[float]:
        for r in timed(records):
            if (r["provider"], r["case"]["name"]) == (provider, case):
                yield 1e6 * r["seconds"]["both"]["median"]

    return values


def over_one_round(provider: str):
    """Time of 10 and 100 rounds as a multiple of the time of one."""

    def values(records: list[Record]) -> Iterator[float]:
        for group in ROUNDS:
            members = [
                r for r in timed(records) if (r["group"], r["provider"]) == (group, provider)
            ]
            times = {r["case"]["rounds"]: r["seconds"]["both"]["median"] for r in members}
            yield from (times[n] / times[1] for n in (10, 100) if {1, n} <= times.keys())

    return values


def peak_mebibytes(provider: str):
    """Peak memory over inputs and gradients."""

    def values(records: list[Record]) -> Iterator[float]:
        for r in records:
            if r["provider"] == provider and "peak_bytes" in r and not r["case"].get("budget"):
                yield r["peak_bytes"] / 2**20

    return values


def over_promise(provider: str):
    """Peak memory over inputs and gradients as a fraction of what the documentation promises.

    The memory budget, with 16-bit features the float32 sums of dY and of a chunk's rows of dX, 110
    bytes a pair and 64 a row or column. SigLIP's loss keeps its gradients until backward.
    """

    def values(records: list[Record]) -> Iterator[float]:
        for r in records:
            if r["provider"] == provider and "peak_bytes" in r:
                case, memory = r["case"], r["machine"]["memory_bytes"]
                rows, cols, D = case["M"], case["N"], case["D"]
                itemsize = getattr(torch, case["dtype"]).itemsize
                default = default_of_card(memory) if r["machine"]["gpu"] else CPU_DEFAULT
                budget = case.get("budget") or default
                sums = 4 * D * (cols + min(rows, MOST_ROWS)) if itemsize < 4 else 0
                kept = (rows + cols) * D * itemsize if case.get("sigmoid") else 0
                linear = 110 * rows * case["captions"] + 64 * (rows + cols)
                yield r["peak_bytes"] / (budget + sums + kept + linear)

    return values
