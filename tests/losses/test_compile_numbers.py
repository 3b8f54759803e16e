"""Numbers that change from call to call: torch.compile makes one graph for all of their values.

The losses and their options are read from the public functions, so that a new one is in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import normalize, softplus

import mxm_kernels as mxm
from mxm_kernels.core import pair_weights
from mxm_kernels.core.options import Options
from tests.support.family import keyword_arguments

# The first value compiles, the second makes it a symbol, and no other compiles anything.
VALUES, COMPILED = 12, 2
FOLDS = mxm.Folds.from_ids(torch.arange(12) // 6, torch.arange(10) // 5)
# Values strictly between these; of a number that is not here, between 0 and 1.
BETWEEN = {"logit_scale": (3, 9), "teacher_logit_scale": (2, 8), "logit_bias": (-8, 2)}
NEEDED = {"logit_scale": 9.0, "logit_bias": -5.0, "soft_share": 0.4}
OF_TEACHER = {"hard_weight", "soft_weight", "teacher_logit_scale", "filter_margin"}
# One less a prior near 1 has few digits in float32, on either path.
TOLERANCE = {"positive_prior": 1e-4}

LOSSES = {
    name: getattr(mxm, name) for name in mxm.__all__ if hasattr(getattr(mxm, name), "not_taken")
}


def _numbers(function: Any) -> list[str]:
    """Names of the arguments of a loss that may be a float."""
    parameters = inspect.signature(function).parameters.values()
    hints = {p.name: p.annotation for p in parameters if p.name in keyword_arguments(function)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        hints |= {name: hint.__forward_arg__ for name, hint in Options.__annotations__.items()}
    return [
        name
        for name, hint in hints.items()
        if ("float" in hint or hint == "Scale") and name not in function.not_taken
    ]


NUMBERS = [(name, option) for name, loss in LOSSES.items() for option in _numbers(loss)]


def _values(option: str) -> list[float]:
    low, high = BETWEEN.get(option, (0, 1))
    return [low + (high - low) * k / (VALUES + 1) for k in range(1, VALUES + 1)]


def _call(name: str, options: list[str]) -> Callable[..., Tensor]:
    """The loss as a function of (rows, D) images and of the values of some options."""
    loss, (y, a, b) = LOSSES[name], (normalize(torch.randn(n, 16)) for n in (10, 12, 10))
    given = {option: NEEDED[option] for option in _numbers(loss) if option in NEEDED}
    taught = OF_TEACHER & {*options} or name in ("fused_soft_loss", "fused_cwcl_loss")
    if name == "fused_intra_modal_loss":
        others: tuple[Any, ...] = (6,)
        given |= {"soft_weight": 0.5, "teacher_features": a} if taught else {}
    else:
        others = (y,) if "folds" in loss.not_taken else (y, FOLDS)
        if taught:
            given |= {"teacher_image_features": a, "teacher_text_features": b}
        if taught and "soft_weight" in _numbers(loss) and "hard_weight" not in _numbers(loss):
            given["soft_weight"] = 0.5
    if "rounds" in keyword_arguments(loss):
        given["rounds"] = None

    def call(x: Tensor, *values: float) -> Tensor:
        made = loss(x, *others, **given | dict(zip(options, values, strict=True)))
        if name != "contrastive_rows":
            return made
        return made.mean(made.sum(softplus(made.spread(made.neg_lse) - made.positives)))

    return call


def _differentiated(call: Callable[..., Tensor], *values: float) -> tuple[Tensor, Tensor]:
    x = normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(1))).requires_grad_()
    value = call(x, *values)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


@pytest.fixture(autouse=True)
def same_draw(monkeypatch):
    """Row shares are drawn by other functions while torch.compile traces."""
    torch.compiler.reset()

    def numbers(shape, dtype, generator, device):
        return torch.arange(shape[0], dtype=dtype, device=device) * 5 % shape[0]

    monkeypatch.setattr(pair_weights, "_random", numbers)


def _assert_alike(compiled: Any, call: Any, values: tuple[float, ...], tolerance: float) -> None:
    torch.testing.assert_close(
        _differentiated(compiled, *values),
        _differentiated(call, *values),
        rtol=1.3e-6,
        atol=tolerance,
    )


def test_every_loss_has_numbers():
    assert {f"fused_{name}_loss" for name in ("mfh", "siglip", "cwcl", "intra_modal")} < {*LOSSES}
    found = {option for _, option in NUMBERS}
    assert found >= {"positive_prior", "label_smoothing", "image_to_text_weight", *BETWEEN}
    assert found >= OF_TEACHER and all("logit_scale" in _numbers(loss) for loss in LOSSES.values())


# aot_eager, as inductor does, keeps a symbol as a factor of a tensor, and fixes it elsewhere.
# Under dynamic every loss is below; the most general one is here too.
@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in LOSSES), ("fused_mfh_loss", True)]
)
def test_all_numbers_at_once(name, dynamic):
    options = _numbers(LOSSES[name])
    call, counter = _call(name, options), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=counter)
    tolerance = max(TOLERANCE.get(option, 1e-5) for option in options)
    for values in zip(*map(_values, options), strict=True):
        _assert_alike(compiled, call, values, tolerance)
    assert counter.frame_count <= COMPILED


# Each alone: the others are constants, for which kernels stand that take no symbol. The graph is
# run as dynamo traces it, which is quick.
@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_one_number_under_dynamic(name, option):
    call, counter = _call(name, [option]), CompileCounterWithBackend("eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    tolerance = TOLERANCE.get(option, 1e-5)
    for value in _values(option):
        _assert_alike(compiled, call, (value,), tolerance)
    assert counter.frame_count == 1
    for end in () if option in BETWEEN else (0.0, 1.0):
        try:
            call(torch.eye(12, 16), end)
        except ValueError:
            continue  # no share for the teacher that is given, or 1 in [0, 1)
        before = counter.frame_count
        _assert_alike(compiled, call, (end,), tolerance)
        assert counter.frame_count <= before + 1


@pytest.mark.parametrize("folds", [FOLDS, (6, 5)], ids=["ragged", "uniform"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_module_for_each_number(dynamic, folds):
    """In floating point 1 - (1 - h) is another number than h, for some of them."""
    counter = CompileCounterWithBackend("eager")
    y, a, b = (normalize(torch.randn(n, 16)) for n in (10, 12, 10))
    taught = {"teacher_image_features": a, "teacher_text_features": b}
    for share in (0.1, 0.2, 0.3, 0.45, *_values("hard_weight")):
        criterion = mxm.MFHLoss(hard_weight=share, rounds=None)
        compiled = torch.compile(criterion, fullgraph=True, dynamic=dynamic, backend=counter)

        def run(module, x):
            return module(x, y, folds, logit_scale=9.0, **taught)

        _assert_alike(partial(run, compiled), partial(run, criterion), (), 1e-5)
    assert counter.frame_count <= COMPILED


@pytest.mark.parametrize("option", ["logit_scale", "logit_bias"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_integers_are_numbers(option, dynamic):
    call, counter = _call("fused_siglip_loss", [option]), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=counter)
    for value in range(2, 2 + VALUES):
        _assert_alike(compiled, call, (value,), 1e-5)
    assert counter.frame_count <= COMPILED


def test_a_share_of_one_side_with_weights_of_its_rows():
    """Its factors are made from the weights, another way than without."""
    counter, y = CompileCounterWithBackend("aot_eager"), normalize(torch.randn(10, 16))
    weights = {"image_weights": torch.rand(12), "text_weights": torch.rand(10)}

    def call(x, share):
        options = {"logit_scale": 9.0, "image_to_text_weight": share, **weights}
        return mxm.fused_info_nce_loss(x, y, FOLDS, **options)

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for value in _values("image_to_text_weight"):
        _assert_alike(compiled, call, (value,), 1e-5)
    assert counter.frame_count <= COMPILED
