"""Batches for tests: drawn by hypothesis or built by hand, run through any implementation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from mxm_kernels import draw_selection, fused_mfh_loss
from reference.mfh import mfh_loss
from tests.support.backend import BackendUnderTest


@dataclass(frozen=True)
class Case:
    """One batch and its options; features follow from the seed."""

    image_ids: tuple[int, ...]
    text_ids: tuple[int, ...]
    dimension: int = 8
    temperature: float = 0.05
    teacher: bool = True
    own_teacher_scale: bool = False
    float8: bool = False  # the teacher's features, to which the dense reference gets them rounded
    hard_weight: float = 0.6
    rounds: int | None = 3
    reduction: str = "mean"
    seed: int = 0

    @property
    def ids(self) -> tuple[Tensor, Tensor]:
        """Ids as tensors."""
        return torch.tensor(self.image_ids), torch.tensor(self.text_ids)

    def features(self, dtype: torch.dtype) -> list[Tensor]:
        """Student and teacher features, rounded to ``dtype``."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = len(self.image_ids), len(self.text_ids)
        made = [
            torch.randn(n, self.dimension, generator=generator, dtype=torch.float64)
            for n in rows * 2
        ]
        return [normalize(f, dim=1).to(dtype) for f in made]

    def as_read(self, dtype: torch.dtype) -> list[Tensor]:
        """The features that the loss is computed from: float8 holds few numbers."""
        x, y, *teacher = self.features(dtype)
        return [x, y, *(in_float8(f) for f in teacher)] if self.float8 else [x, y, *teacher]


def in_float8(features: Tensor) -> Tensor:
    """Rounded to float8, times a power of two that brings the largest entry to 224 ... 448."""
    factor = 2.0 ** int(torch.log2(448 / features.double().abs().max()).floor())
    return (features.float() * factor).to(torch.float8_e4m3fn).to(features.dtype) / factor


@dataclass
class Result:
    """A loss and its gradients."""

    loss: Tensor
    image: Tensor
    text: Tensor
    scale: Tensor

    def named(self):
        """Name and value of each part."""
        return vars(self).items()


def upstream_of(case: Case) -> Tensor:
    """A random upstream gradient of the loss."""
    rows = len(case.image_ids) + len(case.text_ids)
    shape = (rows,) if case.reduction == "none" else ()
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _finish(case: Case, loss, leaves: list[Tensor]) -> Result:
    value = torch.cat(loss) if case.reduction == "none" else loss
    value.backward(upstream_of(case).to(value))
    return Result(value.detach(), *(leaf.grad for leaf in leaves))


def selection_of(case: Case) -> tuple[Tensor, Tensor] | None:
    """The draw that a generator seeded by the case gives."""
    if case.rounds is None:
        return None
    x, y, *_ = case.features(torch.float32)
    return draw_selection(case.ids, x, y, rounds=case.rounds, generator=_generator(case))


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(case.seed)


def run_dense(case: Case, dtype: torch.dtype, features: list[Tensor]) -> Result:
    """The dense reference, with all arithmetic in ``dtype``, on the given features."""
    x, y, tx, ty = (f.to(dtype, copy=True) for f in features)
    x, y = x.requires_grad_(), y.requires_grad_()
    scale = torch.tensor(1 / case.temperature, dtype=dtype, requires_grad=True)
    loss = mfh_loss(
        x,
        y,
        *case.ids,
        scale=scale,
        teacher_x=tx if case.teacher else None,
        teacher_y=ty if case.teacher else None,
        teacher_scale=0.7 / case.temperature if case.own_teacher_scale else None,
        hard_weight=case.hard_weight,
        selection=selection_of(case),
        reduction=case.reduction,
    )
    return _finish(case, loss, [x, y, scale])


def run_fused(case: Case, dtype: torch.dtype, backend: BackendUnderTest) -> Result:
    """The function under test."""
    x, y, tx, ty = (f.to(backend.device) for f in case.features(dtype))
    x, y = x.requires_grad_(), y.requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(1 / case.temperature, dtype=wide, device=backend.device)
    scale.requires_grad_()
    loss = fused_mfh_loss(
        x,
        y,
        case.ids,
        logit_scale=scale,
        teacher_image_features=tx if case.teacher else None,
        teacher_text_features=ty if case.teacher else None,
        teacher_logit_scale=0.7 / case.temperature if case.own_teacher_scale else None,
        teacher_dtype=torch.float8_e4m3fn if case.float8 else None,
        hard_weight=case.hard_weight,
        rounds=case.rounds,
        generator=None if case.rounds is None else _generator(case),
        reduction=case.reduction,
        backend=backend.name,
    )
    return _finish(case, loss, [x, y, scale])


@st.composite
def cases(draw: st.DrawFn, most_rows: int = 40) -> Case:
    """Ragged, shuffled batches with at least one positive pair and any options."""
    instances = draw(st.integers(1, 8))
    # An id from outside the pool is on one side only, so its row has no positive.
    image_ids = draw(st.lists(st.integers(0, instances), min_size=1, max_size=most_rows))
    text_ids = draw(st.lists(st.integers(1, instances + 1), min_size=1, max_size=most_rows))
    text_ids[draw(st.integers(0, len(text_ids) - 1))] = draw(st.sampled_from(image_ids))
    teacher = draw(st.booleans())
    return Case(
        image_ids=tuple(image_ids),
        text_ids=tuple(text_ids),
        dimension=draw(st.sampled_from([1, 2, 7, 16, 33])),
        temperature=draw(st.sampled_from([0.005, 0.01, 0.03, 0.07, 0.3, 1.0])),
        teacher=teacher,
        own_teacher_scale=teacher and draw(st.booleans()),
        float8=teacher and draw(st.booleans()),
        hard_weight=draw(st.sampled_from([0.0, 0.6, 1.0])) if teacher else 0.6,
        rounds=draw(st.sampled_from([1, 3, 10, None])),
        reduction=draw(st.sampled_from(["mean", "none"])),
        seed=draw(st.integers(0, 2**16)),
    )


_BASE = Case(image_ids=(0,) * 6 + (1,) * 6, text_ids=(0,) * 5 + (1,) * 5)

NAMED_CASES = {
    "uniform": _BASE,
    "without teacher": replace(_BASE, teacher=False),
    "float8 teacher": replace(_BASE, float8=True, own_teacher_scale=True),
    "soft only": replace(_BASE, hard_weight=0.0),
    "hard only, with teacher": replace(_BASE, hard_weight=1.0),
    "expectation": replace(_BASE, rounds=None),
    "one round": replace(_BASE, rounds=1),
    "ten rounds": replace(_BASE, rounds=10),
    "rows": replace(_BASE, reduction="none"),
    "ragged and shuffled": Case((3, 1, 3, 2, 1, 1, 4), (1, 2, 3, 3, 4, 1, 1, 1, 2)),
    "rows without positives": Case((0, 1, 5, 5, 2), (1, 7, 2, 2, 9, 9), reduction="none"),
    "a single instance": Case((4, 4, 4), (4, 4)),
    "one pair": Case((1,), (1,)),
    "one image": Case((1,), (0, 1, 2, 1)),
    "one text": Case((0, 1, 2, 1), (1,)),
    "pairs of CLIP": Case(tuple(range(20)), tuple(range(20)), rounds=None, teacher=False),
    "one dimension": replace(_BASE, dimension=1),
    "hot": replace(_BASE, temperature=0.005),
    "cold": replace(_BASE, temperature=1.0),
    "several tiles and tails": Case(
        tuple(i % 7 for i in range(53)), tuple(j % 7 for j in range(35)), dimension=40
    ),
    "float8, several tiles and tails": Case(
        tuple(i % 7 for i in range(53)), tuple(j % 7 for j in range(35)), dimension=40, float8=True
    ),
    "more columns than programs": Case(tuple(range(3)), tuple(j % 5 for j in range(70))),
}
