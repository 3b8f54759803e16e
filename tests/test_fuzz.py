"""The public calls under arguments of any kind, valid and not, mixed.

A call gives a finite result, a non-finite one that its arguments explain, or an error of the
documented types that names an argument. `make fuzz` draws thousands of calls, the suite some
hundreds.
"""

from __future__ import annotations

import inspect
import os
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import BackendUnavailableError, Diagnostics, Folds, Queue
from mxm_kernels.core.options import Options

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))  # of every function
FUZZED = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
)

FUNCTIONS = [name for name in mxm.__all__ if name.startswith("fused_")]
NAMES = set(Options.__annotations__) | {
    name for f in FUNCTIONS for name in inspect.signature(getattr(mxm, f)).parameters
}
# What stands for an argument in an error: its name, or what it is a part of.
NAMES |= {"image_ids", "text_ids", "views", "captions", "teacher", "soft loss", "option"}

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
JUNK = [
    None,
    3,
    -1,
    0,
    2.5,
    True,
    "text",
    b"bytes",
    float("nan"),
    float("inf"),
    10**400,
    1e-320,
    [],
    [1, "a"],
    {},
    (),
    (1,),
    (0, 0),
    (2, 3, 4),
    object(),
    np.float32(2),
    np.zeros((2, 3)),
    np.array(["a"]),
    torch.tensor(1.0),
    torch.tensor(3),
    torch.tensor(True),
    torch.tensor(1 + 2j),
    torch.zeros(0),
    torch.zeros(2, 0),
    torch.zeros(0, 3),
    torch.zeros(2, 3, 4),
    torch.zeros(2, 3, dtype=torch.complex64),
    torch.zeros(2, 3).to_sparse(),
    torch.zeros(2, 3, device="meta"),
    torch.zeros(4, 3, dtype=torch.float8_e4m3fn),
    torch.full((4, 3), float("nan")),
    torch.tensor([1, 1, 2, 2], dtype=torch.uint64),
    torch.tensor([2**63 - 1, -(2**63)]),
    Folds.from_ids([1], [1]),
    Folds.uniform(2, 3),
    torch.Generator(),
    Diagnostics(),
    Queue(torch.zeros(2, 3)),
    torch.device("cpu"),
    torch.float32,
]
junk = st.sampled_from(JUNK)


@pytest.fixture(scope="module", autouse=True)
def group():
    """A group of one rank, so that calls over a process group are drawn too."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@st.composite
def features(draw: st.DrawFn, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """(rows, width) in any layout; mostly normalised, sometimes extreme or not finite."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    made = torch.randn(rows, width, generator=g)
    kind = draw(st.sampled_from(["unit"] * 8 + ["zero", "equal", "large", "nan", "inf", "-inf"]))
    if kind in ("nan", "inf", "-inf"):
        made[draw(st.integers(0, rows - 1)), draw(st.integers(0, width - 1))] = float(kind)
    elif kind == "unit":
        made = normalize(made, dim=1)
    else:
        made = {"zero": made * 0, "equal": torch.ones_like(made), "large": made * 1e3}[kind]
    made = made.to(dtype)
    layout = draw(st.sampled_from(["rows"] * 4 + ["transposed", "strided", "offset", "expanded"]))
    if layout == "transposed":
        made = made.T.contiguous().T
    elif layout == "strided":
        made = torch.stack([made, made], dim=2).flatten(1)[:, ::2]
    elif layout == "offset":
        made = torch.cat([made.new_zeros(1, width), made])[1:]
    elif layout == "expanded":
        made = made[:1].expand(rows, width)
    return made.requires_grad_(draw(st.booleans()))


@st.composite
def calls(draw: st.DrawFn, function: str) -> dict[str, Any]:
    """Arguments by name: a call that is valid but for what is then spoiled."""
    views, captions, instances = (draw(st.integers(1, 3)) for _ in range(3))
    M, N = views * instances, captions * instances
    if draw(st.booleans()) and function != "fused_intra_modal_loss":
        M, N = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    width, dtype = draw(st.sampled_from([1, 3, 8, 17])), draw(st.sampled_from(DTYPES))
    call: dict[str, Any] = {"logit_scale": draw(scales(M, N))}
    ids = st.integers(-2, 3) if draw(st.booleans()) else st.sampled_from([0, 2**62, -(2**63)])

    def row_ids(rows: int) -> list[int]:
        return draw(st.lists(ids, min_size=rows, max_size=rows))

    if function == "fused_intra_modal_loss":
        call["features"] = draw(features(M, width, dtype))
        call["folds"] = draw(st.sampled_from([views, row_ids(M), torch.tensor(row_ids(M))]))
        own = {
            "mask_positives": st.booleans(),
            "row_weights": weights(M),
            "teacher_features": features(M, width, dtype),
            "soft_weight": st.sampled_from([0.0, 0.5, 1.0]),
        }
    else:
        call["image_features"] = draw(features(M, width, dtype))
        call["text_features"] = draw(features(N, width, dtype))
        if "folds" in inspect.signature(getattr(mxm, function)).parameters:
            pair = row_ids(M), row_ids(N)
            call["folds"] = draw(
                st.sampled_from([(views, captions), pair, Folds.from_ids(*pair), (M, N)])
            )
        own = {
            "teacher": st.just(None),
            "soft_weight": st.sampled_from([0.0, 0.5, 1.0, (torch.rand(M), torch.rand(N))]),
            "image_to_text_weight": st.sampled_from([0.0, 0.3, 1.0]),
            "label_smoothing": st.sampled_from([0.0, 0.1, 0.99]),
            "image_weights": weights(M),
            "text_weights": weights(N),
            "image_queue": features(2, width, dtype),
            "text_queue": features(3, width, dtype),
            "teacher_logit_scale": st.sampled_from([1.0, 30.0, torch.tensor(2.0)]),
            "hard_weight": st.sampled_from([0.0, 0.6, 1.0]),
            "mask_false_negatives": st.booleans(),
            "positive_prior": st.sampled_from([0.0, 0.1, 0.9]),
            "positives": st.sampled_from(["in", "out"]),
            "diagnostics": st.builds(Diagnostics),
        }
    own |= {
        "rounds": st.sampled_from([1, 7, None]),
        "soft_share": st.sampled_from([0.0, 0.4, 1.0]),
        "reduction": st.sampled_from(["mean", "none"]),
        "backend": st.sampled_from([None, "blocked", "native", "native", "blocked", "triton"]),
        "generator": st.builds(torch.Generator),
        "process_group": st.builds(lambda: dist.group.WORLD),
        "gather": st.sampled_from(["all", "ring"]),
    }
    taken = inspect.signature(getattr(mxm, function)).parameters
    known = set(taken) | (set(Options.__annotations__) if "options" in taken else set())
    wrong = draw(st.integers(0, 19)) == 0  # an option of another loss
    for name in draw(st.lists(st.sampled_from(sorted(own)), max_size=4, unique=True)):
        if name == "teacher" and "options" in taken:
            call["teacher_image_features"] = draw(features(M, width, dtype))
            call["teacher_text_features"] = draw(features(N, width, dtype))
        elif name in known or wrong:
            call[name] = draw(own[name])
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        call[draw(st.sampled_from(sorted(known - {"options"})))] = draw(junk)
    return call


def scales(M: int, N: int) -> st.SearchStrategy[Any]:
    numbers = [1.0, 14.3, 100.0, 1, np.float64(5), torch.tensor(20.0), torch.tensor([3.0])]
    trained = torch.tensor(10.0, requires_grad=True)
    return st.sampled_from([*numbers, trained, (torch.rand(M) + 1, torch.rand(N) + 1)])


def weights(rows: int) -> st.SearchStrategy[Tensor]:
    return st.sampled_from([torch.rand(rows), torch.ones(rows, dtype=torch.float64)])


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point tensor and number in an argument."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not value.is_meta and value.is_floating_point()
        return [value.detach().double().flatten()] if plain else []
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    is_number = isinstance(value, float | int | np.floating) and abs(value) < 1e308
    return [torch.tensor([float(value)])] if is_number else []


def check(function: str, call: dict[str, Any]) -> None:
    note(f"mxm_kernels.{function}(**{call})")
    parameters = inspect.signature(getattr(mxm, function)).parameters
    try:
        result = getattr(mxm, function)(**call)
    except (TypeError, ValueError, BackendUnavailableError) as error:
        event("error")
        message = str(error)
        assert any(re.search(rf"\b{re.escape(name)}\b", message) for name in NAMES), message
        return
    event("result")
    assert call.keys() <= set(parameters) | set(Options.__annotations__)
    values = result if isinstance(result, tuple) else (result,)
    x = call.get("image_features", call.get("features"))
    for value in values:
        assert value.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    everything = torch.cat([t for v in call.values() for t in tensors(v)])
    tame = bool(everything.isfinite().all()) and float(everything.abs().max()) < 200
    finite = all(bool(value.isfinite().all()) for value in values)
    own = ("image_features", "text_features", "features")
    used = torch.cat([t for name in own for t in tensors(call.get(name))])
    if tame:
        assert finite, f"{values} from finite arguments"
    if not bool(used.isfinite().all()):
        assert not finite, f"{values} from features that are not finite"
    if finite and any(value.requires_grad for value in values):
        torch.cat([value.flatten() for value in values]).sum().backward()
        for name in (*own, "logit_scale"):
            grad = getattr(call.get(name), "grad", None)
            if tame and grad is not None:
                assert bool(grad.isfinite().all()), f"gradient of {name}"
                call[name].grad = None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_call(function):
    @FUZZED
    @given(calls(function))
    def run(call):
        check(function, call)

    run()


@FUZZED
@given(folds=junk, image_ids=junk, text_ids=junk, views=junk, captions=junk)
def test_folds_from_anything(folds, image_ids, text_ids, views, captions):
    for make in (
        lambda: Folds.from_ids(image_ids, text_ids),
        lambda: Folds.uniform(views, captions),
        lambda: mxm.draw_selection(folds, torch.ones(4, 3), torch.ones(6, 3), rounds=2),
    ):
        with suppress(TypeError, ValueError):
            make()


X = normalize(torch.arange(12.0).reshape(4, 3) + 1, dim=1)
PAIRS = {"image_features": X, "text_features": X}
SCALE = {"logit_scale": 5.0}


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [
        ("fused_supcon_loss", {"folds": None}, TypeError, "folds must be Folds.*got None"),
        ("fused_hard_loss", {"folds": None}, TypeError, "folds must be Folds.*got None"),
        ("fused_mfh_loss", {"folds": None}, TypeError, "folds must be Folds.*got None"),
        ("fused_info_nce_loss", {"label_smoothing": 10**400}, ValueError, "label_smoothing must"),
        ("fused_info_nce_loss", {"reduction": np.zeros(2)}, ValueError, "reduction must be 'mean'"),
        ("fused_info_nce_loss", {"backend": np.zeros(2)}, ValueError, "backend must be one of"),
        (
            "fused_mfh_loss",
            {"rounds": 10**400, "folds": (1, 1)},
            ValueError,
            "rounds must be at most",
        ),
        (
            "fused_intra_modal_loss",
            {"features": X, "folds": 2, "row_weights": 3},
            TypeError,
            "row_weights must be a tensor, got int",
        ),
        (
            "fused_self_distillation_loss",
            {"soft_share": 0.0, "generator": 3},
            TypeError,
            "generator must be a torch.Generator",
        ),
    ],
)
def test_what_fuzzing_found(function, change, error, message):
    with pytest.raises(error, match=message):
        getattr(mxm, function)(**(change if "features" in change else PAIRS) | change, **SCALE)


@pytest.mark.parametrize("function", ["fused_decoupled_loss", "fused_debiased_loss"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_nan_shows_beside_no_negative_and_below_the_floor(function, rows):
    bad = X.clone()
    bad[0, 0] = torch.nan
    value = getattr(mxm, function)(bad[:rows], X[:rows], logit_scale=1.0)
    assert not value.isfinite()


def test_cwcl_of_rows_that_weigh_nothing_is_finite():
    one = torch.ones(1, 1)
    teacher = {"teacher_image_features": one, "teacher_text_features": -one}
    assert mxm.fused_cwcl_loss(one, one, logit_scale=1.0, **teacher).isfinite()
