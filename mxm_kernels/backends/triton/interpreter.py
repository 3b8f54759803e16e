"""Mends of Triton's interpreter, for the CPU only: a number of its kernels, and its speed.

The interpreter of Triton 3.6 makes an index of a kernel's number by ``int`` of a NumPy array with
one element, which NumPy 2.5 refuses. Later ones take the element out first, and so does this.

The interpreter replaces the functions of ``triton.language`` at every launch, and again at every
call of a device function inside the launch, where all of them are replaced already. A step on a
batch of 6 x 6 makes 190 such calls; without them it takes a third less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from triton import language as tl
from triton.runtime import interpreter


def mend() -> None:
    """Let a kernel's number be the bound of its ``range``, and replace functions once a launch."""
    _mend_masks()
    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang
    if not hasattr(interpreter, "_LangPatchScope"):  # Triton 3.4 replaces for good
        _mend_without_scopes(patch_tensor)
        return

    def with_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def once(function):
        if any(tl.core.is_builtin(module.load) for module in _language(function)):
            return patch_language(function)
        return interpreter._LangPatchScope()  # with nothing to restore

    interpreter._patch_lang_tensor, interpreter._patch_lang = with_index, once


def _mend_masks() -> None:
    """Masks as booleans: in Triton 3.9 a block of int1 ``&`` a scalar one is held as int32."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_mask(mask):
        if getattr(mask.data, "dtype", "bool") == "bool":  # a descriptor's mask is an array itself
            return mask
        return interpreter.TensorHandle(mask.data.astype(bool), mask.dtype)

    def masked_load(self, pointers, mask, *rest, **named):
        return load(self, pointers, as_mask(mask), *rest, **named)

    def masked_store(self, pointers, value, mask, *rest, **named):
        return store(self, pointers, value, as_mask(mask), *rest, **named)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store


def _mend_without_scopes(patch_tensor: Callable[[Any], None]) -> None:
    """The index alone: what is replaced there at every call cannot be told from what was."""

    def with_index(tensor):
        patch_tensor(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = with_index


@cache
def _language(function: Any) -> list[ModuleType]:
    """The modules of ``triton.language`` that a kernel or device function sees."""
    seen = function.__globals__.values()
    return [module for module in (tl, tl.core) if any(value is module for value in seen)]
