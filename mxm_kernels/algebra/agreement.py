"""The facts on which the ranks of a process group must agree, compared before all else is sent.

What may differ between ranks, such as the number of rows, each rank checks for itself and reports
through ``parallel.distributed.SharedErrors``. Everything else is a fact here. A later check that
depends on facts alone therefore fails on every rank or on none, and leaves no rank waiting.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.folds import Folds
from mxm_kernels.options import Resolved, Scale
from mxm_kernels.parallel.distributed import generator_state

# Options with an entry for each row of this rank; the others are those of the whole batch.
_OF_ROWS = (
    "teacher_image_features",
    "teacher_text_features",
    "soft_weight",
    "image_weights",
    "text_weights",
)
_TRAINABLE = ("soft_weight", "pair_weights", "image_weights", "text_weights")


def facts_of(
    x: Tensor,
    y: Tensor,
    logit_scale: Scale,
    o: Resolved,
    folds: Folds | None,
    generator: torch.Generator | None,
    own: tuple[Any, ...],
) -> dict[str, Any]:
    """Name and value of what every rank has to have alike, in words and numbers."""
    options = {name: value for name, value in o._asdict().items() if name != "process_group"}
    facts = {n: _fact(v, x.device, of_rows=n in _OF_ROWS) for n, v in options.items()}
    uniform = folds is not None and folds.is_uniform
    trained = {"image_features": x, "text_features": y, "logit_scale": logit_scale}
    trained |= {name: options[name] for name in _TRAINABLE}
    return facts | {
        "D": x.shape[1],
        "dtype": str(x.dtype),
        "device": x.device.type,
        "logit_scale": _fact(logit_scale, x.device, of_rows=isinstance(logit_scale, tuple | list)),
        "which arguments require a gradient": [
            name for given in trained.items() for name in _with_gradient(*given)
        ],
        "folds": repr(folds) if uniform else type(folds).__name__,
        "generator": None if generator is None else generator_state(generator),
        "loss": _fact(own, x.device),
    }


def _with_gradient(name: str, value: Any) -> list[str]:
    if isinstance(value, tuple | list):
        return [n for k, v in enumerate(value) for n in _with_gradient(f"{name}[{k}]", v)]
    wanted = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return [name] if wanted else []


def _fact(value: Any, device: torch.device, *, of_rows: bool = False) -> Any:
    """A number or a word itself; of a tensor what ranks share, ``of_rows`` all but the rows."""
    if isinstance(value, Tensor):
        shape = ("rows", *value.shape[1:]) if of_rows and value.ndim else tuple(value.shape)
        place = "" if value.device == device else f" on {value.device}"
        return f"{value.dtype} tensor of shape {shape}{place}{_content(value)}"
    if isinstance(value, tuple | list):
        return [_fact(v, device, of_rows=of_rows) for v in value]
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype)
    return value if plain else type(value).__name__


def _content(value: Tensor) -> str:
    """A digest of indices, which are checked by looking at them; nothing of other tensors."""
    if value.dtype not in (torch.int32, torch.int64) or value.is_meta:
        return ""
    entries = value.detach().cpu().contiguous().numpy().tobytes()
    return f" with digest {hashlib.blake2b(entries, digest_size=8).hexdigest()}"
