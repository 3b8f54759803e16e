"""Functions that torch.compile calls while it traces, and whose results it keeps as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def constant_when_compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """What ``torch.compiler.assume_constant_result`` does, without its import of torch._dynamo.

    That import takes as long as the one of torch and as much memory. All that follows it is this
    attribute (torch 2.1 to 2.15), and a test compares the two.
    """
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function
