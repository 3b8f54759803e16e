"""The loss inside: whether it can be called, and its options by sentence-transformers' names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from typing import Any

from torch import nn

from mxm_kernels.checks import check_choice
from mxm_kernels.losses.module import Loss

BOTH = ("query_to_doc", "doc_to_query")
_NOT_BUILT = ("query_to_query", "doc_to_doc")


def checked(loss: object) -> nn.Module:
    """A module that is called with both sides, folds and a scale, and gives one number.

    Raises:
        TypeError: it is called in another way.
        ValueError: it gives the losses of the rows.
    """
    if isinstance(loss, nn.Module):
        with suppress(TypeError):
            inspect.signature(loss.forward).bind(None, None, None, logit_scale=1.0)
            if getattr(loss, "hyper_parameters", {}).get("reduction") == "none":
                raise ValueError("loss must have reduction='mean': a trainer takes one number")
            return loss
    raise TypeError(
        "loss must be a module that is called with features of both sides, folds and "
        f"logit_scale, as MFHLoss() is, got {type(loss).__name__}"
    )


def with_options(loss: nn.Module, argument: str, **options: Any) -> Loss:
    """The same loss with more options, which ``argument`` sets.

    Raises:
        TypeError: it is no loss of this package, or has one of the options already.
    """
    if not isinstance(loss, Loss):
        raise TypeError(
            f"{argument} sets an option of the loss, which must be one of mxm_kernels, got "
            f"{type(loss).__name__}"
        )
    for name in options:
        if loss.hyper_parameters.get(name) is not None:
            raise TypeError(f"{argument} and {name} of the loss say the same: give one of them")
    made = copy(loss)
    made.hyper_parameters = {**loss.hyper_parameters, **options}
    return made


def directed(loss: nn.Module, directions: object, partition_mode: object) -> nn.Module:
    """The loss in the directions that are asked for; in its own ones where none are.

    Raises:
        TypeError, ValueError: they are not as described, not built, or said twice.
    """
    if partition_mode is not None:
        check_choice("partition_mode", partition_mode, ("joint", "per_direction"))
    names = BOTH if directions is None else _names(directions)
    both = len(names) == 2
    said = directions is not None or partition_mode is not None
    if both and said and partition_mode != "per_direction":
        raise ValueError(
            f"partition_mode must be 'per_direction' for both directions, got {partition_mode!r}: "
            "each has a softmax of its own here. A softmax over both, 'joint', is what "
            "MultipleNegativesRankingLoss takes where nothing is said; it is not built"
        )
    if directions is None:
        return loss
    return with_options(loss, "directions", image_to_text_weight=0.5 if both else 1.0)


def _names(directions: object) -> set[str]:
    if isinstance(directions, str) or not isinstance(directions, Iterable):
        raise TypeError(f"directions must be a tuple of names, got {directions!r}")
    names = set(map(str, directions))
    for name in sorted(names):
        if name in _NOT_BUILT:
            raise ValueError(
                f"directions: {name} is not built; MultifoldLoss has query_to_doc and doc_to_query"
            )
        if name not in BOTH:
            raise ValueError(f"directions must be names out of {', '.join(BOTH)}, got {name!r}")
    if "query_to_doc" not in names:
        raise ValueError(
            "directions must have 'query_to_doc', as in MultipleNegativesRankingLoss, "
            f"got {directions!r}"
        )
    return names


def directions_of(loss: nn.Module) -> tuple[str, ...]:
    """The directions that count in a loss, by its weight of the first."""
    weight = float(getattr(loss, "hyper_parameters", {}).get("image_to_text_weight", 0.5))
    return tuple(name for name, share in zip(BOTH, (weight, 1 - weight), strict=True) if share)


def described(loss: nn.Module) -> str:
    """Its name and options, without the process group, which is of this run alone."""
    if not isinstance(loss, Loss):
        return repr(loss)
    made = copy(loss)
    kept = {name: value for name, value in loss.hyper_parameters.items() if name != "process_group"}
    made.hyper_parameters = kept
    return repr(made)
