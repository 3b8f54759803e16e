"""Python numbers that torch.compile traces as symbols, so that one graph serves every value.

A number that changes from call to call is a symbol from its second value on. What reads the
value, as an argument of an operator does, fixes it: each value then compiles a graph of its own.
Sums, differences and comparisons leave it a symbol, and so does a product with a tensor. A product
or a quotient of numbers does, but not in torch 2.8 under aot_eager: there the tensor comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_symbol(number: float) -> bool:
    """Whether torch.compile traces the number without its value."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # 0.2 s to import

    return not has_static_value(number)


def as_operand(number: float, like: Tensor) -> float | Tensor:
    """The number as it is; a symbol as a 0-d tensor of the dtype of ``like``, on its device."""
    return like.new_ones(()) * number if is_symbol(number) else number
