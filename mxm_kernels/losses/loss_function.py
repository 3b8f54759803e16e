"""The wrapper around every loss: what its signature says, the checks, and the ranks.

``@loss_function`` reads a loss's signature once: the arguments that are its own, their defaults,
and which of the shared options it does not take. A call then

- refuses an option that the loss does not take,
- checks the loss's own arguments by its ``check``, which a module's constructor calls too,
- over ranks makes an error of this rank one of all ranks, and hands the arguments on that all
  ranks must have alike; see ``distributed.ranks``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from mxm_kernels.distributed.ranks import SharedErrors

# Options that several losses do not take.
TEACHER_OFFSETS = "teacher_image_offsets", "teacher_text_offsets"
FILTER = "filter_margin", "filter_strategy", "filter_thresholds"
IDS = "exclude_ids", "within_ids"

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def loss_function(
    check: Callable[..., None] | None = None, *, not_taken: Mapping[str, str] | None = None
) -> Callable[[_Loss], _Loss]:
    """Wrap a loss.

    Args:
        check: takes arguments of the loss by name, raises if one is not as described.
        not_taken: options that the loss does not take, and what it takes instead, or "".

    """
    refused = dict(not_taken or {})

    def decorate(function: _Loss) -> _Loss:
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        checked = () if check is None else tuple(inspect.signature(check).parameters)

        def run(positional: tuple[Any, ...], given: dict[str, Any]) -> Any:
            refuse(function.__name__, refused, given)
            if check is not None:
                check(**{name: given[name] for name in given if name in checked})
            return function(*positional, **given)

        @wraps(function)
        def loss(*positional: Any, **given: Any) -> Any:
            group = given.get("process_group")
            if group is None:
                return run(positional, given)
            arguments = {name: given.get(name, default) for name, default in defaults.items()}
            del arguments["logit_scale"]
            arguments["loss"] = function.__name__
            with SharedErrors(group, arguments) as ranks:
                return run(positional, {**given, "process_group": ranks})

        loss.check = check  # type: ignore[attr-defined]
        loss.not_taken = refused  # type: ignore[attr-defined]
        return cast(_Loss, loss)

    return decorate


def refuse(loss: str, refused: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Refuse the options that have no meaning for a loss.

    Raises:
        TypeError: one was given; the message names it and the loss.
    """
    for name, instead in refused.items():
        if name in given and instead:
            raise TypeError(f"{loss} takes {instead}")
        if name in given:
            raise TypeError(f"{loss} takes no {name}")
    for queue, offsets in (("text_queue", "text_offsets"), ("image_queue", "image_offsets")):
        if offsets in refused and getattr(given.get(queue), "offsets", None) is not None:
            raise TypeError(f"{loss} takes no offsets of a queue, got {queue}.offsets")
