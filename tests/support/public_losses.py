"""Calls of every public loss, made from its signature: a new loss is called by being public.

``tests.support.family`` has the losses' dense forms and options; here a loss is only called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import open_clip
from mxm_kernels.core.options import HyperParameters
from mxm_kernels.sentence_transformers import MultifoldLoss

IDS = [0, 0, 1, 1, 2, 2]  # of the rows of both sides: row i and row i show the same instance too
ROWS, D, PAIRS = len(IDS), 8, 12

FUNCTIONS = {
    name: getattr(mxm, name)
    for name in mxm.__all__
    if name.startswith("fused_") or name == "contrastive_rows"
}
MODULES = {name: getattr(mxm, name) for name in mxm.__all__ if name.endswith("Loss")}
OPEN_CLIP = {name: getattr(open_clip, name) for name in open_clip.__all__ if name.endswith("Loss")}

# What loses its meaning without a teacher.
TAUGHT = "fused_soft_loss", "fused_cwcl_loss"


@dataclass
class Features:
    """Rows of both sides, and of a teacher."""

    x: Tensor
    y: Tensor
    teacher: dict[str, Tensor]

    @classmethod
    def make(cls, device: torch.device | str = "cpu") -> Features:
        """The same numbers in every call."""
        g = torch.Generator("cpu").manual_seed(3)
        rows = [torch.empty(ROWS, D, dtype=torch.float32, device="cpu") for _ in range(4)]
        x, y, *taught = (normalize(r.normal_(generator=g), dim=1).to(device) for r in rows)
        teacher = dict(
            zip(("teacher_image_features", "teacher_text_features"), taught, strict=True)
        )
        return cls(x.requires_grad_(), y.requires_grad_(), teacher)

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """By name what a call cannot do without; another such argument has to be added here."""
        x, y = self.x, self.y
        first, second = self.teacher.values()
        known = {
            "image_features": x,
            "text_features": y,
            "features": x,
            "logit_scale": 10.0,
            "logit_bias": -5.0,
            "soft_share": 0.5,
            "dist_image_features": first,
            "dist_text_features": second,
            "dist_logit_scale": 10.0,
            "caption_loss_weight": 2.0,
            "clip_loss_weight": 1.0,
            "logits": x[:, None],
            "labels": torch.ones(ROWS, 1, dtype=torch.long, device=x.device),
        }
        taken = inspect.signature(function).parameters
        known["folds"] = IDS if "features" in taken else (IDS, IDS)
        needed = [n for n, p in taken.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
        if "folds" in taken and "folds" not in needed:
            needed.append("folds")
        teacher = self.teacher if getattr(function, "__name__", "") in TAUGHT else {}
        return {name: known[name] for name in needed} | teacher


def call(function: Callable[..., Any], f: Features, **options: Any) -> Any:
    """A function with these options."""
    return function(**f.arguments(function) | options)


def call_module(kind: Any, f: Features, **options: Any) -> Any:
    """A module of the package, which takes some of them in its constructor."""
    given = f.arguments(kind.function) | options
    own = {*HyperParameters.__annotations__, *inspect.signature(kind).parameters}
    fixed = {name: given.pop(name) for name in [*given] if name in own}
    return kind(**fixed)(**given)


def call_open_clip(kind: Any, f: Features, **fixed: Any) -> Any:
    """A module of open_clip's form; its losses where they are several."""
    module = kind(**f.arguments(kind) | fixed)
    return module(**f.arguments(module.forward))


def call_sentences(loss: Any, f: Features) -> Any:
    """The module for sentence-transformers, whose model gives the rows as they are."""
    module = MultifoldLoss(lambda column: {"sentence_embedding": column["rows"]}, loss)
    return module([{"rows": f.x}, {"rows": f.y}])


def backward(value: Any) -> None:
    """Of whatever a loss returns."""
    if isinstance(value, mxm.Rows):
        value = value.mean(value.sum(value.spread(value.neg_lse) - value.positives))
    parts = value if isinstance(value, tuple) else (value,)
    sum(part.sum() for part in parts).backward()


def drawing(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """Options with which a loss draws; none for one that never does."""
    taken = inspect.signature(function).parameters
    own: dict[str, Any] = {"rounds": 3, "soft_share": 0.5}
    return [{name: value} for name, value in own.items() if name in taken]


def quiet(function: Callable[..., Any], f: Features, world: int = 1) -> Iterator[dict[str, Any]]:
    """Options with which it takes nothing from a default generator; every rank has these rows."""
    taken = inspect.signature(function).parameters
    if not drawing(function):
        yield {}
    for options in drawing(function):
        yield {**options, "generator": torch.Generator("cpu").manual_seed(4)}
    if "rounds" in taken:
        yield {"rounds": None}
    if "soft_share" in taken:
        yield {"soft_share": 0.0}
        yield {"soft_share": 1.0}
    if "selection" in taken:
        drawn = torch.tensor([IDS.index(i) for i in IDS] * world, device=f.x.device).expand(2, -1)
        yield {"rounds": 3, "selection": (drawn, drawn)}
        pairs = PAIRS * world**2
        share = torch.full((pairs,), 0.5 / world, dtype=torch.float32, device=f.x.device)
        yield {"rounds": 3, "pair_weights": (share, share)}
    if "hard_weight" in taken:
        yield {"rounds": 3, "hard_weight": 0.0, **f.teacher}
