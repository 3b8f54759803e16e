"""A loss of the family held to its dense form in float64: value, gradients and diagnostics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.backend import BackendUnderTest
from tests.support.calls import Given, Made, call
from tests.support.cases import Case
from tests.support.compare import assert_as_good
from tests.support.dense import dense
from tests.support.family import Loss


def _differentiated(made: Made) -> tuple[Tensor, list[Tensor], float]:
    """The value, its gradients by the leaves, and the norm of the upstream gradient."""
    value = torch.cat(tuple(made.value)) if isinstance(made.value, tuple) else made.value
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    assert all(leaf.is_leaf for leaf in made.leaves)
    value.backward(upstream)
    zeros = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in made.leaves]
    return value.detach(), zeros, float(upstream.norm())


def _has_others(case: Case, choice: Any) -> bool:
    """Whether one modality has what is compared: two rows, and of an instance for a hard loss."""
    ids = case.image_ids
    return len(ids) > 1 and (choice.soft_weight == "one" or len(set(ids)) < len(ids))


def check(
    loss: Loss, case: Case, choice: Any, dtype: torch.dtype, backend: BackendUnderTest
) -> None:
    """Hold what the loss takes of the choice to float64."""
    choice = loss.taken(choice)
    given = Given(case, choice, dtype)
    if loss.one_modality and not _has_others(case, choice):
        with pytest.raises(ValueError, match="at least two rows"):
            call(loss, given, dtype, backend.device, backend.name)
        return
    exact = dense(loss, given, torch.float64)
    expected, wanted, size = _differentiated(exact)
    naive, naive_grads = expected, wanted  # which float64 is held to a bound without
    if dtype != torch.float64:
        naive, naive_grads, _ = _differentiated(dense(loss, given, dtype))
    made = call(loss, given, dtype, backend.device, backend.name)
    actual, got, _ = _differentiated(made)
    s = 1 / case.temperature
    # Terms of a loss: similarities, at most 2 s each. Terms of a gradient: probabilities of a
    # row, which sum to at most 2, times s; each as far off as exp makes of S's rounding.
    assert_as_good("loss", actual, expected, naive, dtype, magnitude=4 * s * size)
    rounding = 4 + s
    # Some gradients are rounded to 16 bits before they are summed, and the sum may cancel. Then
    # the bound has one rounding of the largest gradient more. This happens in four cases. Under
    # rules the gradient of the scale is a sum over products that may be kept in 16 bits. The
    # features go into S and into something beside it, and autograd adds up both gradients. Each
    # row has a scale, whose gradient is a sum over the gradient of the scaled features. D is 1,
    # where the texts of a row differ in their sign alone.
    queued = choice.text_queue != "none" or choice.image_queue != "none"
    two_ways = loss.two_ways or queued or choice.label_smoothing > 0 or loss.one_modality
    own_scales = choice.logit_scale == "rows"
    ids = choice.exclude_ids or choice.within_ids
    told = choice.image_offsets != "none" or choice.teacher_image_offsets or ids
    one_way = not (two_ways or own_scales or told or choice.filter_margin is not None)
    early = dtype.itemsize == 2 and (not one_way or case.dimension == 1)
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    own = ratio / rounding if early else 0.0
    for k, (a, e, n) in enumerate(zip(got, wanted, naive_grads, strict=True)):
        largest = 4 * size * (s if e.ndim == 2 else 1)
        assert_as_good(
            f"gradient {k}",
            a,
            e,
            n,
            dtype,
            magnitude=(1 + own) * largest,
            rounding=rounding,
            largest=largest,
        )
    if case.dimension > 1 and dtype.itemsize > 2:  # else similarities tie
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        close = pytest.approx(exact.diagnostics, rel=tolerance, abs=tolerance, nan_ok=True)
        assert made.diagnostics == close
