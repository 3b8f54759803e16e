"""What is measured: batches, and the groups of cases that are timed against each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch

TEMPERATURE = 0.03


@dataclass(frozen=True)
class Case:
    """One batch: M images and N texts of instances with ``views`` images and ``captions`` texts."""

    M: int
    N: int
    D: int
    views: int = 6
    captions: int = 5
    rounds: int | None = 10  # None is the exact expectation
    teacher: bool = True
    dtype: str = "float32"
    threads: int | None = None  # None is torch's own choice
    sigmoid: bool = False  # SigLIP's loss of one pair in every row, instead of MFH
    budget: int | None = None  # bytes of memory that ours may take; None is the default

    def __post_init__(self) -> None:
        if self.sigmoid and (not self.pairs or self.teacher):
            raise ValueError("a sigmoid case has one pair in every row and no teacher")
        instances, rest = divmod(self.M, self.views)
        if rest or instances * self.captions != self.N:
            raise ValueError(
                f"{self.M} x {self.N} rows are not instances of {self.views} x {self.captions}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return getattr(torch, self.dtype)

    @property
    def pairs(self) -> bool:
        """Whether every instance is one image and one text: the batch of CLIP."""
        return self.views == self.captions == 1

    @property
    def clip(self) -> bool:
        """Whether the loss is the symmetric InfoNCE of CLIP, which peers compute."""
        return self.pairs and not self.teacher

    @property
    def products(self) -> int:
        """Matrix products of a step that stores none: S, T, dX and dY, and again S and T.

        The sigmoid loss needs no T, and S once: its terms are weighed before they are known.
        """
        return 3 if self.sigmoid else 6 if self.teacher else 4

    @property
    def operations(self) -> float:
        """Floating-point operations of these products, each of 2 M N D."""
        return self.products * 2.0 * self.M * self.N * self.D

    @property
    def name(self) -> str:
        """Short and unique: it identifies the case in records and tables."""
        rounds = "expectation" if self.rounds is None else f"R {self.rounds}"
        parts = [f"{self.M:,} x {self.N:,} x {self.D}", "pairs" if self.pairs else rounds]
        parts += ["teacher"] if self.teacher else []
        parts += ["sigmoid"] if self.sigmoid else []
        parts += [self.dtype]
        parts += [] if self.threads is None else [f"{self.threads} threads"]
        parts += [] if self.budget is None else [f"budget {self.budget >> 20} MiB"]
        return ", ".join(parts)

    def as_dict(self) -> dict:
        """Fields and name, for a record."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def of_record(cls, fields: dict) -> Case:
        """The case that :meth:`as_dict` wrote."""
        return cls(**{field: value for field, value in fields.items() if field != "name"})


@dataclass(frozen=True)
class Group:
    """Cases timed interleaved, in one process, by every provider that can run them."""

    name: str
    cases: tuple[Case, ...]
    providers: tuple[str, ...] = ()  # prefixes of names; none means all
    seconds: float = 20.0  # budget of the timed repeats
    fewest: int = 3  # repeats of the slowest provider
    needs: float = 45.0  # about how long it takes in all, gates and compilation included

    def __str__(self) -> str:
        return self.name


PAPER = Case(420, 350, 512)
LARGE = Case(4920, 4100, 512)
KEPT = replace(LARGE, budget=512 << 20)  # whose S and T have room between forward and backward
OURS = ("native", "blocked", "triton", "floor")
# The floor's products are those of MFH.
NO_FLOOR = ("native", "blocked", "triton", "dense", "chunked", "open_clip")


def pairs(rows: int, D: int, **options) -> Case:
    """CLIP's batch: ``rows`` images, each with its own text."""
    return Case(rows, rows, D, 1, 1, rounds=None, **options)


def paper(D: int) -> tuple[Case, ...]:
    """The paper's four batches, of images or renderings with their texts."""
    batches = ((420, 350, 6, 5), (240, 200, 6, 5), (80, 400, 1, 5), (200, 1000, 1, 5))
    return tuple(Case(M, N, D, views, captions) for M, N, views, captions in batches)


def _each(cases: tuple[Case, ...], prefix: str, **options) -> list[Group]:
    return [Group(f"{prefix} {case.name}", (case,), **options) for case in cases]


def cpu_suite(cores: int, multiplies_bfloat16: bool) -> list[Group]:
    """The groups of ``make bench``, most important first.

    ``multiplies_bfloat16``: the CPU has instructions for it. On one that has none, an EPYC with
    AVX2, dense eager takes 39 s on the large batch in bfloat16, so it is left out there.
    """
    eager = ("dense eager",) if multiplies_bfloat16 else ()
    small = Case(1680, 1400, 512)
    threads = sorted({1, *(2**k for k in range(1, 8) if 2**k < cores), cores})
    return [
        Group("large", (LARGE,), seconds=45, needs=240),
        Group(
            "bfloat16",
            (replace(LARGE, dtype="bfloat16"),),
            (*OURS, *eager),
            25,
            2,
            needs=150,
        ),
        Group("kept", (KEPT,), (*OURS[:2], "floor", "dense eager"), 30, 3, needs=110),
        Group(
            "kept bfloat16",
            (replace(KEPT, dtype="bfloat16"),),
            ("native", "floor"),
            15,
            3,
            needs=60,
        ),
        Group(
            "rounds",
            tuple(replace(LARGE, rounds=rounds) for rounds in (1, 10, 100, None)),
            OURS[:3],
            40,
            5,
            needs=100,
        ),
        *_each(paper(512), "paper", seconds=4),
        *_each(paper(1024), "paper", seconds=3, providers=(*OURS, "dense eager", "chunked")),
        *_each(
            tuple(
                replace(PAPER, teacher=teacher, dtype=dtype)
                for teacher, dtype in product((True, False), ("bfloat16", "float32"))
                if (teacher, dtype) != (True, "float32")
            ),
            "paper",
            seconds=3,
            providers=(*OURS, "dense eager", "chunked"),
        ),
        Group("no teacher", (replace(LARGE, teacher=False),), (*OURS, "chunked"), 10),
        Group(
            "rounds of the paper",
            tuple(replace(small, rounds=rounds) for rounds in (1, 5, 10, 100, None)),
            (*OURS, "dense eager"),
            40,
            2,
            needs=70,
        ),
        Group("pairs", (pairs(2048, 512, teacher=False),), seconds=10),
        Group("pairs, teacher", (pairs(2048, 512),), seconds=10),
        Group("sigmoid", (pairs(2048, 512, teacher=False, sigmoid=True),), NO_FLOOR, 10),
        *(
            Group(f"batch {case.name}", (case,), (*OURS, "dense eager", "chunked"), 12)
            for case in (Case(840, 700, 512), small, Case(3360, 2800, 512))
        ),
        Group("threads", tuple(replace(LARGE, threads=n) for n in threads), OURS, 30, needs=60),
        Group("batch 16k", (Case(16_386, 13_655, 512),), OURS, 60, 1, needs=400),
    ]


def gpu_suite() -> list[Group]:
    """The groups of ``pytest bench --bench-device cuda``, most important first."""
    bf16: dict[str, Any] = {"dtype": "bfloat16"}
    squares = [pairs(n, 768, **bf16) for n in (4096, 8192, 16_384)]
    folds = Case(32_766, 27_305, 768, **bf16)
    return [
        Group("MFH 32k", (pairs(32_768, 768, **bf16),), (*OURS, "dense", "chunked"), 12),
        Group("MFH 32k wide", (pairs(32_768, 1024, **bf16),), ("triton", "floor"), 6),
        Group("InfoNCE 64k", (pairs(65_536, 768, teacher=False, **bf16),), seconds=15),
        Group(
            "SigLIP 64k",
            (pairs(65_536, 768, teacher=False, sigmoid=True, **bf16),),
            ("triton", "siglip-kernel", "dense", "chunked", "open_clip"),
            12,
        ),
        Group("paper 420 x 350", (replace(PAPER, **bf16),), seconds=4),
        Group("paper 420 x 350 float32", (PAPER,), seconds=4),
        *(Group(f"batch {case.M}", (case,), seconds=6) for case in squares),
        Group(
            "rounds",
            tuple(replace(folds, rounds=rounds) for rounds in (1, 10, 100, None)),
            ("triton", "floor"),
            10,
            5,
        ),
        Group("batch 65536", (pairs(65_536, 768, **bf16),), OURS, 10),
        *_each(tuple(replace(c, **bf16) for c in paper(512)[1:]), "paper", seconds=3),
        Group("large", (LARGE,), ("triton", "floor", "dense eager", "chunked"), 8),
        Group("InfoNCE 16k", (pairs(16_384, 768, teacher=False, **bf16),), seconds=6),
        Group("largest", (pairs(131_072, 768, **bf16),), ("triton", "floor"), 15, 1),
    ]


def smoke_suite(device: torch.device) -> list[Group]:
    """A few seconds that touch everything: does the benchmark itself run?"""
    from mxm_kernels import backends  # here, since bench/against.py times other versions of it

    ours = backends.choose(None, device, torch.float32)
    providers = (ours, "floor", "dense eager", "chunked")
    return [
        Group("large", (Case(24, 20, 16),), providers, 0.2),
        Group("kept", (Case(24, 20, 16, budget=1 << 20),), providers, 0.1),
        Group("rounds", tuple(Case(24, 20, 16, rounds=n) for n in (1, 10)), (ours,), 0.1),
        Group("pairs", (pairs(24, 16, teacher=False),), providers, 0.1),
        Group("sigmoid", (pairs(24, 16, teacher=False, sigmoid=True),), (ours, "dense eager"), 0.1),
    ]


def memory_suite(name: str, device: torch.device) -> list[Case]:
    """Batches whose peak memory is measured without timing them; the timed ones have theirs."""
    if name == "smoke":
        return [Case(24, 20, 16)]
    if device.type == "cuda":
        return [pairs(98_304, 768, dtype="bfloat16")]
    return [Case(9840, 8200, 512)]
