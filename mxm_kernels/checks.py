"""Checks of the public arguments: each names the argument, what was expected and what came."""

from __future__ import annotations

from numbers import Integral, Real
from typing import cast

import torch
from torch import Tensor

_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
MOST_ROUNDS = 1 << 24  # as many are counted exactly in float32
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_features(
    image_features: Tensor, text_features: Tensor, *, may_be_empty: bool = False
) -> None:
    """Two (rows, D) floating-point tensors of one dtype on one device, with rows in them."""
    check_matrix("image_features", image_features, may_be_empty=may_be_empty)
    check_matrix("text_features", text_features, may_be_empty=may_be_empty)
    if image_features.shape[1] != text_features.shape[1]:
        raise ValueError(
            "image_features and text_features must have the same dimension D, "
            f"got {image_features.shape[1]} and {text_features.shape[1]}"
        )
    check_alike("text_features", text_features, "image_features", image_features)


def check_matrix(name: str, features: object, *, may_be_empty: bool = False) -> None:
    """A dense (rows, D) floating-point tensor with rows in it."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(features).__name__}")
    check_dense(name, features)
    if features.ndim != 2:
        raise ValueError(f"{name} must have shape (rows, D), got {tuple(features.shape)}")
    if features.dtype not in FEATURE_DTYPES:
        raise TypeError(
            f"{name} must be float32, bfloat16, float16 or float64, got {features.dtype}"
        )
    if (features.shape[0] == 0 and not may_be_empty) or features.shape[1] == 0:
        raise ValueError(
            f"{name} must have at least one row and one dimension, got shape "
            f"{tuple(features.shape)}"
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """Neither sparse nor made of other tensors: the kernels read strides."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if torch.compiler.is_compiling():
        return
    if hasattr(tensor, "to_local"):
        raise TypeError(
            f"{name} must be a plain tensor, got {type(tensor).__name__}: give its full_tensor(), "
            "or to a loss with a process_group its to_local(), the rows of this rank; a parameter "
            "that fully_shard shards is whole in its module's forward: return it from there"
        )
    if tensor.is_nested or isinstance(tensor, torch.masked.MaskedTensor):
        kind = "a nested tensor" if tensor.is_nested else type(tensor).__name__
        raise TypeError(f"{name} must be a plain tensor, got {kind}")


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """The same dtype on the same device."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


def can_look(tensor: Tensor) -> bool:
    """Whether its numbers may be looked at: a GPU's would make the step wait, a trace has none."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_positive(name: str, value: float) -> None:
    """Positive, and neither zero nor infinite once it is float32."""
    if not _SMALLEST <= value <= _LARGEST:
        raise ValueError(
            f"{name} must be positive and finite (1 / temperature, not its logarithm), got {value}"
        )


def check_draw(generator: object, selection: object) -> None:
    """A generator and a pair, or None; the entries of a selection are checked later."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    if selection is not None and not (isinstance(selection, (tuple, list)) and len(selection) == 2):
        raise TypeError(
            "selection must be a pair (image_to_text, text_to_image), "
            f"got {type(selection).__name__}"
        )


def as_count(name: str, value: object, least: int = 1) -> int:
    """An integer of any kind that is not too small."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words. The type comes first, because an array compares by element."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_teacher_dtype(dtype: object) -> None:
    """float8, or None for that of the features."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype == torch.float8_e4m3fn):
        raise ValueError(f"teacher_dtype must be torch.float8_e4m3fn or None, got {dtype!r}")


def check_drawn_rounds(rounds: object) -> None:
    """R of a draw, which has no expectation."""
    if rounds is None:
        raise TypeError("rounds must be an integer, got None: an expectation draws nothing")
    if isinstance(rounds, bool) or not isinstance(rounds, Integral):
        raise TypeError(f"rounds must be an integer, got {type(rounds).__name__}")
    if not 1 <= int(rounds) <= MOST_ROUNDS:
        raise ValueError(f"rounds must be between 1 and {MOST_ROUNDS} for a draw, got {rounds}")


def check_rounds(rounds: object) -> None:
    """R, or None for the expectation."""
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, Integral)):
        raise TypeError(f"rounds must be an integer or None, got {type(rounds).__name__}")
    if rounds is not None and int(rounds) < 1:
        raise ValueError(f"rounds must be at least 1, or None for the expectation, got {rounds}")
    if rounds is not None and int(rounds) > MOST_ROUNDS:
        raise ValueError(
            f"rounds must be at most {MOST_ROUNDS}, or None for the expectation, got {rounds}"
        )


def check_fraction(name: str, value: object, *, below_one: bool = False) -> None:
    """A number in [0, 1], or in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = cast(float, value)  # not converted: an integer may be too large for one
    if below_one and not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def check_margin(name: str, value: object) -> None:
    """A finite number that is not negative, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
    if not 0 <= cast(float, value) <= _LARGEST:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
