"""What a call says of its pairs: offsets of the logits, ids of who is a negative, thresholds.

Every rule is one vector (R,) of this process's rows, images first, as ``PairRules`` has them. The
thresholds are similarities <X_i, Y_j> of the teacher's features here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mxm_kernels.backends.interface import PairRules
from mxm_kernels.core.options import Resolved
from mxm_kernels.core.vectors import as_ids, as_offsets, as_thresholds


def read_rules(o: Resolved, x: Tensor, y: Tensor, dtype: torch.dtype) -> PairRules:
    """The rules of the rows, images first; a side that is not given has numbers of no effect."""
    own = {"image_offsets": o.image_offsets, "text_offsets": o.text_offsets}
    taught = {
        "teacher_image_offsets": o.teacher_image_offsets,
        "teacher_text_offsets": o.teacher_text_offsets,
    }
    of_teacher = _offsets(taught, x, y, dtype)
    return PairRules(
        _offsets(own, x, y, dtype),
        None if of_teacher is None else of_teacher.detach(),
        _ids("exclude_ids", o.exclude_ids, x, y),
        _ids("within_ids", o.within_ids, x, y),
        _thresholds("filter_thresholds", o.filter_thresholds, x, y, dtype),
    )


def _offsets(given: dict[str, Any], x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(R,) offsets of both sides by their names, 0 for a side that has none."""
    if all(value is None for value in given.values()):
        return None
    sides = zip(given.items(), (x, y), strict=True)
    return torch.cat(
        [
            rows.new_zeros(len(rows), dtype=dtype)
            if value is None
            else as_offsets(name, value, rows, dtype)
            for (name, value), rows in sides
        ]
    )


def _thresholds(name: str, given: Any, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(R,) thresholds from a pair ((M,), (N,))."""
    if given is None:
        return None
    sides = enumerate(zip(given, (x, y), strict=True))
    return torch.cat(
        [as_thresholds(f"{name}[{k}]", value, rows, dtype) for k, (value, rows) in sides]
    )


def _ids(name: str, given: Any, x: Tensor, y: Tensor) -> Tensor | None:
    """(R,) ids from a pair ((M,), (N,))."""
    if given is None:
        return None
    sides = enumerate(zip(given, (x, y), strict=True))
    return torch.cat([as_ids(f"{name}[{k}]", value, rows) for k, (value, rows) in sides])
