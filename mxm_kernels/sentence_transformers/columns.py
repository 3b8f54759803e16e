"""The columns of a batch: how many are positives, their embeddings, which rows belong together."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.checks import as_count
from mxm_kernels.folds import Folds, as_ids

NEGATIVE = -(2**63)  # the id that all texts of negative columns share
_RANK = 1 << 40  # without labels, the ids of rank r start at r times this


def check_positives(positives: object) -> None:
    """How many columns are positives: a number, "all", or None, which was not given.

    Raises:
        TypeError, ValueError: it is none of them.
    """
    if isinstance(positives, str) and positives != "all":
        raise ValueError(f"positives must be a number of columns or 'all', got {positives!r}")
    if not isinstance(positives, str) and positives is not None:
        as_count("positives", positives)


def count_positives(positives: int | str | None, columns: int) -> int:
    """How many of ``columns`` columns, the anchors first, are positives.

    Raises:
        ValueError: there are too few columns.
    """
    if columns < 2:
        raise ValueError(
            f"expected a column of anchors and one or more of positives, got {columns}"
        )
    if positives == "all":
        return columns - 1
    count = 1 if positives is None else int(positives)
    if count > columns - 1:
        raise ValueError(
            f"positives={count} needs {count + 1} columns, the anchors first, got {columns}"
        )
    return count


def embedded(model: Any, columns: list[Any]) -> list[Tensor]:
    """(B, D) embeddings of each column.

    Where sentence-transformers can (6.0 and newer), all columns behind the anchors go through the
    model in one call.
    """
    embed = _merged_forward() if "sentence_transformers" in sys.modules else None
    if embed is not None:
        return embed(model, columns)
    return [model(column)["sentence_embedding"] for column in columns]


@cache
def _merged_forward() -> Any:
    """The library's own function, or None: an import that fails is searched for at every call."""
    try:
        from sentence_transformers.base.losses.merged_forward import embed_columns
    except ImportError:  # an older version
        return None
    return embed_columns


def folds_of(columns: list[Tensor], positives: int, labels: Tensor | None, rank: int) -> Folds:
    """Which anchors and which texts, column after column, show the same instance.

    An anchor and its positives have the label of their row, or without labels a number that no
    other row of any rank has. All negatives have one id, which no anchor has.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the columns have different numbers of rows; there is not one label for each
            row, or one is the id of the negatives.
    """
    anchors = columns[0]
    rows, negatives = len(anchors), len(columns) - 1 - positives
    if any(len(column) != rows for column in columns):
        raise ValueError(
            f"expected as many rows in every column, got {[len(column) for column in columns]}"
        )
    if labels is None:
        ids = torch.arange(rank * _RANK, rank * _RANK + rows, device=anchors.device)
    else:
        ids = as_ids("labels", labels).to(anchors.device)
        if len(ids) != rows:
            raise ValueError(f"labels: expected one for each of {rows} rows, got {len(ids)}")
        if negatives and bool((ids == NEGATIVE).any()):
            raise ValueError(f"labels must not be {NEGATIVE}, which is the id of the negatives")
    others = ids.new_full((negatives * rows,), NEGATIVE)
    return Folds.from_ids(ids, torch.cat([ids.repeat(positives), others]))
