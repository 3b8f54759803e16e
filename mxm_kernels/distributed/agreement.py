"""The facts on which the ranks of a process group must agree, compared before all else is sent.

What may differ between ranks, such as the number of rows, each rank checks for itself and reports
through ``Ranks.tell``. Everything else is a fact here. A later check that depends on facts alone
therefore fails on every rank or on none, and leaves no rank waiting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.distributed.ranks import generator_state
from mxm_kernels.folds import Folds

# Arguments with an entry for each row of this rank; the others are those of the whole batch.
_OF_ROWS = (
    "image_features",
    "text_features",
    "features",
    "logit_scale",
    "teacher_image_features",
    "teacher_text_features",
    "teacher_features",
    "soft_weight",
    "image_weights",
    "text_weights",
    "row_weights",
    "image_offsets",
    "text_offsets",
    "offsets",
    "teacher_image_offsets",
    "teacher_text_offsets",
    "teacher_offsets",
    "exclude_ids",
    "within_ids",
    "filter_thresholds",
)


def facts_of(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments that must be the same on every rank, in words and numbers.

    ``device`` is that of the features.
    """
    facts = {
        name: _fact(value, device, of_rows=name in _OF_ROWS) for name, value in arguments.items()
    }
    return facts | {
        "device": device.type,
        "which arguments require a gradient": [
            n for given in sorted(arguments.items()) for n in _with_gradient(*given)
        ],
    }


def _with_gradient(name: str, value: Any) -> list[str]:
    if isinstance(value, (tuple, list)):
        return [n for k, v in enumerate(value) for n in _with_gradient(f"{name}[{k}]", v)]
    wanted = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return [name] if wanted else []


def _fact(value: Any, device: torch.device, *, of_rows: bool = False) -> Any:
    """A number or a word itself; of a tensor what ranks share, ``of_rows`` all but the rows."""
    if isinstance(value, Folds):
        return repr(value) if value.is_uniform else type(value).__name__
    if isinstance(value, torch.Generator):
        return generator_state(value)
    if isinstance(value, Tensor):
        shape = ("rows", *value.shape[1:]) if of_rows and value.ndim else tuple(value.shape)
        place = "" if value.device == device else f" on {value.device}"
        content = "" if of_rows else _content(value)
        return f"{value.dtype} tensor of shape {shape}{place}{content}"
    if isinstance(value, (tuple, list)):
        return [_fact(v, device, of_rows=of_rows) for v in value]
    plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype))
    return value if plain else type(value).__name__


def _content(value: Tensor) -> str:
    """A digest of indices, which are checked by looking at them; nothing of other tensors."""
    if value.dtype not in (torch.int32, torch.int64) or value.is_meta:
        return ""
    entries = value.detach().cpu().contiguous().numpy().tobytes()
    return f" with digest {hashlib.blake2b(entries, digest_size=8).hexdigest()}"
