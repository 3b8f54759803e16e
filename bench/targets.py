"""The targets, and what the records say about them. A miss is reported, never a failed test."""

from __future__ import annotations

from dataclasses import replace

from bench import words
from bench.cases import KEPT, LARGE, PAPER, Case, pairs
from bench.goals import PROMISED, Target, amount, faster_than, share_of_speed, time_beside
from bench.markdown import table as markdown
from bench.providers.dense import COMPILED, DENSE
from bench.ratios import (
    microseconds,
    over_another_loss,
    over_floor,
    over_one_round,
    over_promise,
    over_provider,
    over_provider_everywhere,
    peak_mebibytes,
)
from bench.results_file import Record

LARGE_BFLOAT16, KEPT_BFLOAT16 = (replace(case, dtype="bfloat16") for case in (LARGE, KEPT))
MFH_32K = [pairs(32_768, D, dtype="bfloat16") for D in (768, 1024)]
SIGLIP_64K = pairs(65_536, 768, teacher=False, sigmoid=True, dtype="bfloat16").name
INFO_NCE_64K = pairs(65_536, 768, teacher=False, dtype="bfloat16")
# 70 % and 75 % of the rate of the products, by either floor.
HEADLINES = {MFH_32K[0]: 0.70, MFH_32K[1]: 0.70, INFO_NCE_64K: 0.75}
FLOORS = {
    "to_floor": words.PRODUCTS,
    "to_kept_floor": words.PRODUCTS_KEPT,
    "to_cubed": "{products} products at the vendor's 8192-cubed rate",
}
PAPER_BFLOAT16 = PAPER.name.replace("float32", "bfloat16")


def products(provider: str, case: Case, bound: float, floor: str = "to_floor") -> Target:
    """At most so many times as long as the matrix products of a floor."""
    values = over_floor(provider, case.name, floor)
    return Target(_named(provider, case), bound, values, time_beside(FLOORS[floor]))


def headline(case: Case, share: float, floor: str) -> Target:
    """At least so large a share of the speed of the products, on a GPU."""
    said = share_of_speed(FLOORS[floor].format(products=case.products))
    return Target(_named("triton", case), 1 / share, over_floor("triton", case.name, floor), said)


def against(what: str, provider: str, other: str, bound: float, groups: str) -> Target:
    """At most so large a fraction of another provider's time."""
    values = over_provider(provider, other, groups)
    return Target(what, bound, values, faster_than(words.name(other)))


def _named(provider: str, case: Case) -> str:
    return f"`{provider}`, {_BATCHES.get(case, case.name)}"


_BATCHES = {
    LARGE: "large batch",
    LARGE_BFLOAT16: "large batch, bfloat16",
    KEPT: "large batch, budget of 512 MiB",
    KEPT_BFLOAT16: "large batch, bfloat16, budget of 512 MiB",
}
_SLOWEST = "`{}`, the slowest of the paper's batches"
_ROUNDS = "`{}`, 10 or 100 rounds, whichever is slower"
_RATIOS = time_beside("one round")

TARGETS = [
    products("native", LARGE, 1.10),
    against("`native`, large batch", "native", DENSE, 1 / 7, "large"),
    against("`native`, large batch", "native", COMPILED, 1 / 3, "large"),
    products("native", LARGE_BFLOAT16, 1.25),
    products("native", KEPT, 1.10, "to_kept_floor"),
    products("native", KEPT_BFLOAT16, 1.25, "to_kept_floor"),
    against("`native`, large batch, budget of 512 MiB", "native", DENSE, 1 / 10, "kept"),
    Target(
        "`blocked`, the slowest of all cases",
        1,
        over_provider_everywhere("blocked", DENSE),
        faster_than(words.EAGER),
    ),
    products("blocked", LARGE, 1.3),
    Target(_ROUNDS.format("native"), 1.02, over_one_round("native"), _RATIOS),
    Target(
        "`native`, peak memory of any batch, default budget",
        64,
        peak_mebibytes("native"),
        amount("MiB"),
    ),
    against(_SLOWEST.format("native"), "native", DENSE, 1, "paper"),
    against(_SLOWEST.format("native"), "native", COMPILED, 1, "paper"),
    *(
        headline(case, share, floor)
        for case, share in HEADLINES.items()
        for floor in ("to_floor", "to_cubed")
    ),
    against("`triton`, InfoNCE 64k", "triton", "memeff", 1 / 2.5, "InfoNCE 64k"),
    Target(
        "`triton`, InfoNCE 64k",
        1,
        over_another_loss("triton", INFO_NCE_64K.name, "siglip-kernel", SIGLIP_64K),
        faster_than("siglip-kernel's SigLIP"),
    ),
    against("`triton`, SigLIP 64k", "triton", "siglip-kernel", 1, "SigLIP 64k"),
    *(
        against(f"`triton`, {group}", "triton", other, bound, group)
        for group in ("MFH 32k", "batch")
        for other, bound in ((DENSE, 1 / 5), (COMPILED, 1 / 2))
    ),
    against("`triton`, 420 x 350", "triton", DENSE, 1 / 10, "paper 420 x 350"),
    Target(
        "`triton`, 420 x 350, in a CUDA graph",
        110,
        microseconds("triton, CUDA graph", PAPER_BFLOAT16),
        amount("µs"),
    ),
    Target(_ROUNDS.format("triton"), 1.02, over_one_round("triton"), _RATIOS),
    Target("`triton`, peak memory of any batch", 1, over_promise("triton"), PROMISED),
    against(_SLOWEST.format("triton"), "triton", DENSE, 1, "paper"),
    against(_SLOWEST.format("triton"), "triton", COMPILED, 1, "paper"),
]


NOTE = (
    f"`native` is the C++ backend and `blocked` the one in plain PyTorch. The large batch has "
    f"{LARGE.M:,} images, {LARGE.N:,} texts and features of {LARGE.D} numbers. Where a line is of "
    "several batches, the worst of them is shown.\n\n"
)


def table(records: list[Record]) -> str:
    """The targets that were measured: goal, worst measured, met or not."""
    rows = [row for target in TARGETS if (row := target.row(records)) is not None]
    return NOTE + markdown(["what", "goal", "measured", "met"], rows)
