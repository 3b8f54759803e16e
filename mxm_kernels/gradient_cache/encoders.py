"""What is known of an encoder before it runs: its name, its modules, whether it is trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

Names = frozenset[str]
MOST = 1000  # towers in a list; a longer one holds data, and takes long to go through
CALL: Names = frozenset(("__call__", "__wrapped__"))


def name_of(encoder: Callable) -> str:
    """As a user would call it."""
    if isinstance(encoder, partial):
        return name_of(encoder.func)
    return getattr(encoder, "__qualname__", None) or type(encoder).__name__


def trainable(encoder: Callable, modules: tuple[nn.Module, ...]) -> bool:
    """Whether a gradient can arrive anywhere; of a plain function it is not known."""
    known = isinstance(getattr(encoder, "__self__", encoder), nn.Module)
    return not known or any(p.requires_grad for m in modules for p in m.parameters())


def warn_of_batch_norm(modules: tuple[nn.Module, ...]) -> None:
    """The one kind of layer that is known to treat rows together."""
    kinds = nn.modules.batchnorm._BatchNorm
    layers = (layer for module in modules for layer in module.modules())
    if any(isinstance(layer, kinds) and layer.training for layer in layers):
        warnings.warn(
            "GradientCache: BatchNorm in training mode normalises over a micro-batch and counts "
            "it twice in its running statistics; the gradients are not those of the whole batch",
            stacklevel=3,
        )


def modules_of(encoder: Callable) -> tuple[nn.Module, ...]:
    """The modules that an encoder is, binds, or can reach by the names in its code.

    Nothing is run to find them. A module that is inside one that was found is not looked for.
    """
    found: dict[nn.Module, None] = {}
    seen: dict[Any, Any] = {}  # keeps what it has the id of
    waiting: list[tuple[Any, Names]] = [(encoder, CALL)]
    while waiting:
        thing, names = waiting.pop()
        if isinstance(thing, nn.Module):
            found[thing] = None
            continue
        key: tuple[Any, ...] = id(thing), names
        if isinstance(thing, MethodType):  # made anew whenever it is looked up
            key = id(thing.__self__), id(thing.__func__)
        if key not in seen:
            seen[key] = thing
            waiting += reversed(list(_reached(thing, names)))
    return tuple(found)


def _reached(thing: Any, names: Names) -> Iterator[tuple[Any, Names]]:
    """What a thing leads to, where ``names`` are those in the code that uses it."""
    if thing is None or isinstance(thing, (Tensor, str, bytes, int, float)):
        return
    if isinstance(thing, partial):
        for bound in (thing.func, *thing.args, *thing.keywords.values()):
            yield bound, names | CALL
    elif isinstance(thing, MethodType):
        yield thing.__self__, _names_in(thing.__func__)
        if not isinstance(thing.__self__, nn.Module):
            yield thing.__func__, names
    elif isinstance(thing, FunctionType):
        used = _names_in(thing) | CALL
        for value in _values(thing, used):
            yield value, used
    elif isinstance(thing, (dict, list, tuple, set)):
        several = thing.values() if isinstance(thing, dict) else thing
        for value in several if len(several) <= MOST else ():
            if callable(value):
                yield value, names | CALL
    elif isinstance(thing, (type, ModuleType)):  # what is in those would be half the program
        for name in names:
            if isinstance(vars(thing).get(name), nn.Module):
                yield vars(thing)[name], names
    else:
        for name in names:
            yield _attribute(thing, name), names


def _values(function: FunctionType, used: Names) -> Iterator[Any]:
    """What a function's closure, defaults and globals hold; of functions, those of its file."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in used & function.__globals__.keys():
        value = function.__globals__[name]
        other = isinstance(value, FunctionType) and value.__globals__ is not function.__globals__
        if not other:
            yield value


def _names_in(function: Any) -> Names:
    """The names in a function's code and in the functions and comprehensions inside it."""
    names: set[str] = set()
    waiting = [getattr(function, "__code__", None)]
    while waiting:
        code = waiting.pop()
        if isinstance(code, CodeType):
            names.update(code.co_names)
            waiting += code.co_consts
    return frozenset(names)


def _attribute(thing: Any, name: str) -> Any:
    """An attribute without running what computes it; that function in place of a property."""
    found = inspect.getattr_static(thing, name, None)
    if isinstance(found, MemberDescriptorType):
        return getattr(thing, name, None)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, cached_property):
        found = found.func
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    return MethodType(found, thing) if isinstance(found, FunctionType) else found
