"""Every tensor that a public loss takes, by its name in the surface, and calls that read it.

A loss is here by being public (:data:`PUBLIC`), and a tensor argument by standing in a signature:
one that :func:`call_with` cannot make fails the tests that ask for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

import mxm_kernels as mxm

PUBLIC: dict[str, Any] = {
    name: getattr(mxm, name)
    for name in sorted(mxm.__all__)
    if hasattr(getattr(mxm, name), "not_taken")  # what loss_function wraps
}
IDS = [0, 0, 1, 2, 7], [0, 1, 1, 0, 5, 2]  # the last image and a text have no positive
ONE_INSTANCE = [0, 0], [0, 0, 0]  # no row has a negative
# Indices, which are always finite, and which the losses check by looking at them.
INDICES = {"folds", "selection", "exclude_ids", "within_ids"}
# Of which an infinite one says something: test_not_finite has tests of their own.
MAY_BE_INFINITE = {"filter_thresholds"}
# Of both sides, where a call takes two tensors.
PAIRS = {"pair_weights", "soft_weight"}
# What a call cannot do without, beside the features and the scale.
NEEDED = {"fused_self_distillation_loss": {"soft_share": 0.5}}


class Argument(NamedTuple):
    """A tensor of a call: an argument, or one side of it."""

    name: str
    side: int | None = None

    def __str__(self) -> str:
        return self.name if self.side is None else f"{self.name}[{self.side}]"


def annotations(loss: Any) -> dict[str, str]:
    """Name and type of every argument of a loss, its options included."""
    parameters = inspect.signature(loss).parameters.values()
    own = {p.name: str(p.annotation) for p in parameters if p.kind is not p.VAR_KEYWORD}
    if len(own) == len(parameters):
        return own
    hints = mxm.Options.__annotations__.items()
    options = {name: getattr(hint, "__forward_arg__", str(hint)) for name, hint in hints}
    return own | {n: hint for n, hint in options.items() if n not in loss.not_taken}


def arguments(loss: Any) -> Iterator[Argument]:
    """Every tensor of floating-point numbers that a loss takes."""
    for name, kind in annotations(loss).items():
        if name in INDICES | MAY_BE_INFINITE or not ("Tensor" in kind or kind == "Scale"):
            continue
        if name not in PAIRS:
            yield Argument(name)
        if name in PAIRS or kind == "Scale":
            yield from (Argument(name, side) for side in (0, 1))


EVERY = [(name, argument) for name, loss in PUBLIC.items() for argument in arguments(loss)]


def call_with(loss: str, argument: Argument, ids: Any = IDS, seed: int = 0) -> dict[str, Any]:
    """The arguments of the smallest call that reads ``argument``, all of them finite.

    Features are positive: a feature of -inf makes every similarity of its row -inf, which vanishes
    from sums of exponentials.
    """
    function, made = PUBLIC[loss], _values(ids, torch.Generator().manual_seed(seed))
    taken = annotations(function)
    name = argument.name
    given = {n: made[n] for n in ("image_features", "text_features", "features", "logit_bias")}
    given |= {"logit_scale": made["logit_scale"], "folds": ids, "rounds": None}
    if "features" in taken:
        given["folds"] = ids[0]
    if _is_taught(loss, name):
        given |= {n: made[n] for n in made if re.fullmatch("teacher_.*features", n)}
        given["soft_weight"] = 0.5
    if loss == "contrastive_rows":
        given.pop("soft_weight", None)
    if name == "logit_scale" and argument.side is not None:
        given["logit_scale"] = made["row_scales"]
    elif name not in given or name == "soft_weight":
        given[name] = made[name]
    given = {n: v for n, v in given.items() if n in taken}
    return given | NEEDED.get(loss, {})


def _is_taught(loss: str, name: str) -> bool:
    needs_teacher = loss in ("fused_soft_loss", "fused_cwcl_loss")
    return needs_teacher or name.startswith("teacher_") or name == "soft_weight"


def _values(ids: Any, generator: torch.Generator) -> dict[str, Any]:
    """A finite value for every argument."""
    M, N, D = len(ids[0]), len(ids[1]), 4
    P = int((torch.tensor(ids[0])[:, None] == torch.tensor(ids[1])).sum())

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) + 0.1

    rows = {"image": M, "text": N}
    made: dict[str, Any] = {f"{side}_features": some(n, D) for side, n in rows.items()}
    made |= {f"teacher_{side}_features": some(n, D) for side, n in rows.items()}
    made |= {f"{side}_weights": some(n) for side, n in rows.items()}
    made |= {f"{side}_queue": some(3, D) for side in rows}
    made |= {"features": some(M, D), "teacher_features": some(M, D), "row_weights": some(M)}
    made |= {"pair_weights": (some(P), some(P)), "row_scales": (3 * some(M), 3 * some(N))}
    made |= {"soft_weight": (some(M) / 2, some(N) / 2)}
    made |= {f"{of}{side}_offsets": some(n) for side, n in rows.items() for of in ("", "teacher_")}
    made |= {"offsets": some(M), "teacher_offsets": some(M)}
    scalars = {"logit_scale": 3.0, "teacher_logit_scale": 2.0, "logit_bias": -2.0}
    return made | {name: torch.tensor(value) for name, value in scalars.items()}


def tensor_of(given: dict[str, Any], argument: Argument) -> Tensor:
    """The tensor itself."""
    value = given[argument.name]
    return value if argument.side is None else value[argument.side]


def leaves_of(given: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a call that gets a gradient where it requires one."""
    leaves = {}
    for name, value in given.items():
        if name.startswith("teacher_") or name.endswith("_queue") or name in INDICES:
            continue
        tensors = value if isinstance(value, tuple) else (value,)
        leaves |= {f"{name}[{k}]": v for k, v in enumerate(tensors) if isinstance(v, Tensor)}
    return leaves


def losses_of(loss: str, given: dict[str, Any]) -> Tensor:
    """The loss, () or as one vector of both sides'; of the list of rows a loss of every field."""
    made = PUBLIC[loss](**given)
    if isinstance(made, mxm.Rows):
        n, S, u = made.neg_lse, made.positives, made.teacher_mean
        hard = made.mean(made.sum(softplus(made.spread(n) - S)))
        if u is None:
            return hard
        return hard + made.mean(torch.logaddexp(n, made.logsumexp(S)) - u, of_every_row=True)
    return torch.cat(made) if isinstance(made, (tuple, list)) else made
