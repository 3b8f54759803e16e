"""Over ranks: what is not finite on one shows on all of them, and an error is one of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import mxm_kernels as mxm
from tests.support.processes import results
from tests.support.tensors import (
    EVERY,
    IDS,
    PUBLIC,
    annotations,
    call_with,
    leaves_of,
    losses_of,
    tensor_of,
)

WORLD, AWAY = 2, 100
SAME = {"logit_scale", "teacher_logit_scale", "logit_bias", "image_queue", "text_queue"}


def _given(rank: int, loss: str, argument: Any, bad: float) -> dict[str, Any]:
    """A rank's call, in which a row of the last rank, or what all ranks share, is ``bad``."""
    ids = tuple([i + AWAY * rank for i in side] for side in IDS)
    whole = argument.name == "pair_weights" or (argument.name in SAME and argument.side is None)
    given = call_with(loss, argument, ids, seed=0 if whole else rank)
    if argument.name == "pair_weights":
        given["pair_weights"] = tuple(torch.cat([w] * WORLD) for w in given["pair_weights"])
    if whole or rank == WORLD - 1:
        tensor_of(given, argument).view(-1)[-1] = bad
    return given | {"process_group": dist.group.WORLD, "backend": "blocked"}


def outcomes(rank: int, world: int, gather: str, reduction: str, bad: float) -> dict[str, str]:
    """Of each tensor of each loss: what is not NaN, or the error."""
    made = {}
    for loss, argument in EVERY:
        given = _given(rank, loss, argument, bad) | {"gather": gather, "reduction": reduction}
        taken = annotations(PUBLIC[loss])
        given = {name: value for name, value in given.items() if name in taken}
        # The weights of all ranks' pairs have a gradient here where they are of this rank's rows.
        leaves = {n: v for n, v in leaves_of(given).items() if not n.startswith("pair_weights")}
        for leaf in leaves.values():
            leaf.requires_grad_()
        key = f"{loss}, {argument}"
        try:
            losses = losses_of(loss, given)
        except (ValueError, RuntimeError) as error:
            made[key] = f"{type(error).__name__}: {error}"
            continue
        losses.sum().backward()
        values = {"losses": losses} | {name: leaf.grad for name, leaf in leaves.items()}
        made[key] = " ".join(name for name, v in values.items() if not v.isnan().all())
    return made


@pytest.mark.parametrize(
    ("gather", "reduction", "bad"),
    [("all", "mean", -torch.inf), ("all", "none", torch.nan), ("ring", "none", -torch.inf)],
)
def test_it_shows_on_every_rank(gather, reduction, bad):
    every = results(WORLD, outcomes, gather, reduction, bad)
    for (_, argument), key in zip(EVERY, every[0], strict=True):
        for rank, made in enumerate(every):
            error = "Error" in made[key] and argument.name in made[key]
            assert not made[key] or error, f"{key} on rank {rank}: {made[key]}"
        assert bool(every[0][key]) == bool(every[1][key]), key


WEIGHED = {
    "fused_mfh_loss": "image_weights",
    "fused_siglip_loss": "text_weights",
    "fused_cwcl_loss": "image_weights",
    "contrastive_rows": "text_weights",
    "fused_intra_modal_loss": "row_weights",
}


def weighed_by_nothing(rank: int, world: int, rows: int) -> list[str]:
    """The errors of losses whose weights are all 0, where the last rank has ``rows`` rows."""
    errors = []
    for loss, name in WEIGHED.items():
        argument = next(a for which, a in EVERY if which == loss and a.name == name)
        given = call_with(loss, argument, IDS)
        given |= {n: v for n, v in (("process_group", dist.group.WORLD),) if world > 1}
        given[name] = given[name] * 0
        if rank == world - 1 > 0:
            given = _of_first_rows(given, rows)
        taken = annotations(PUBLIC[loss])
        try:
            losses_of(loss, {n: v for n, v in given.items() if n in taken})
        except ValueError as error:
            errors.append(str(error))
    return errors


def _of_first_rows(given: dict[str, Any], rows: int) -> dict[str, Any]:
    """The same call with the first rows of each side alone."""
    made = dict(given)
    for name, value in given.items():
        if name == "folds":
            cut = value[:rows] if isinstance(value[0], int) else tuple(s[:rows] for s in value)
            made[name] = (
                torch.tensor(cut, dtype=torch.int64)
                if isinstance(cut, list)
                else (*(torch.tensor(side, dtype=torch.int64) for side in cut),)
            )
        elif isinstance(value, torch.Tensor) and value.ndim and not name.endswith("queue"):
            made[name] = value[:rows]
    return made


@pytest.mark.parametrize("rows", [3, 0])
def test_weights_that_are_all_zero_are_an_error_of_every_rank(rows):
    """As in one process; a rank of them may have no row at all."""
    alone = weighed_by_nothing(0, 1, rows)
    assert len(alone) == len(WEIGHED)
    assert all(
        "expected a positive weight for a row that counts in the mean" in error for error in alone
    )
    assert results(WORLD, weighed_by_nothing, rows) == [alone, alone]


def weighed_on_one_rank(rank: int, world: int) -> torch.Tensor:
    """A loss whose rows weigh something on rank 0 only."""
    x = torch.eye(4) + rank
    weights = torch.ones(4) * (rank == 0)
    return mxm.fused_info_nce_loss(
        x, x, (1, 1), logit_scale=1.0, image_weights=weights, process_group=dist.group.WORLD
    )


def test_weights_that_are_zero_on_one_rank_are_none():
    assert all(bool(loss.isfinite()) for loss in results(WORLD, weighed_on_one_rank))
