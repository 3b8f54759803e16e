"""An input that is not finite shows in the whole loss and in every gradient, or is an error.

A scaler of gradients skips a step if one of those that it looks at is not finite, so each of them
has to be NaN: also where the input is frozen, or of a row that no sum would notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

import mxm_kernels as mxm
from mxm_kernels import MFHLoss, checks, fused_mfh_loss
from tests.support.tensors import (
    EVERY,
    IDS,
    ONE_INSTANCE,
    PUBLIC,
    Argument,
    annotations,
    call_with,
    leaves_of,
    losses_of,
    tensor_of,
)

KINDS = torch.nan, torch.inf, -torch.inf
OFFSETS = {
    f"{of}{side}offsets" for of in ("", "teacher_") for side in ("", "image_", "text_")
}  # where -1 is a number like any other
# What a CPU looks at, and refuses by name. NaN of a scale or a bias came from training, and shows.
LOOKED_AT = {
    "logit_scale",
    "teacher_logit_scale",
    "logit_bias",
    "image_weights",
    "text_weights",
    "row_weights",
    "soft_weight",
    *OFFSETS,
}
IDENTIFIERS = [f"{loss}-{argument}" for loss, argument in EVERY]
every_tensor = pytest.mark.parametrize(("loss", "argument"), EVERY, ids=IDENTIFIERS)


def spoiled(loss: str, argument: Argument, bad: float, ids: Any = IDS, **more: Any):
    """The arguments of a call in which one number of one tensor is ``bad``."""
    given = call_with(loss, argument, ids) | more
    tensor_of(given, argument).view(-1)[-1] = bad  # the row without a positive
    taken = annotations(PUBLIC[loss])
    return {name: value for name, value in given.items() if name in taken}


def not_nan(losses: Tensor, leaves: dict[str, Tensor]) -> list[str]:
    """What is not NaN all over of a loss and its gradients."""
    losses.sum().backward()
    made = {"losses": losses} | {n: v.grad for n, v in leaves.items() if v.requires_grad}
    return [name for name, value in made.items() if value is None or not value.isnan().all()]


def check(
    loss: str, argument: Argument, given: dict[str, Any], learned: Any = None, looks: bool = True
) -> None:
    """Its losses and gradients are NaN, or it is an error of this argument."""
    leaves = leaves_of(given)
    for name, leaf in leaves.items():
        leaf.requires_grad_(learned is None or name in learned)
    with suppress(RefusedError) if looks and argument.name in LOOKED_AT else nullcontext():
        with refused(argument.name):
            losses = losses_of(loss, given)
        assert not not_nan(losses, leaves)


class RefusedError(Exception):
    """An error that names the argument."""


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Such an error as this one."""
    try:
        yield
    except ValueError as error:
        if name not in str(error):
            raise
        raise RefusedError from error


def test_every_public_loss_is_in_the_list():
    names = {name for name in mxm.__all__ if name.endswith("_loss")}
    assert {*names, "contrastive_rows"} == set(PUBLIC)


@every_tensor
def test_it_shows_everywhere(loss, argument, backend):
    reductions = ["mean", "none"] if "reduction" in annotations(PUBLIC[loss]) else ["mean"]
    kinds = KINDS if not backend.interpreted else KINDS[-1:]
    for bad in kinds:
        for reduction in reductions:
            more = {"backend": backend.name, "reduction": reduction}
            given = spoiled(loss, argument, bad, **more)
            check(loss, argument, _moved(given, backend.device))


def _moved(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a call on a device."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return {
        name: tuple(map(moved, value)) if isinstance(value, tuple) else moved(value)
        for name, value in given.items()
    }


@every_tensor
@pytest.mark.parametrize("backend_name", ["blocked", "native"])
def test_it_shows_in_one_gradient_where_all_else_is_frozen(loss, argument, backend_name):
    given = spoiled(loss, argument, -torch.inf, backend=backend_name)
    for learned in leaves_of(given):
        again = spoiled(loss, argument, -torch.inf, backend=backend_name)
        check(loss, argument, again, {learned})


@every_tensor
def test_it_shows_where_no_row_has_a_negative(loss, argument):
    if loss == "fused_intra_modal_loss":
        return  # a row there has itself for a negative of none
    for frozen in (False, True):  # weights that are learned take another way through the formulas
        for bad in KINDS:
            given = spoiled(loss, argument, bad, ONE_INSTANCE, backend="blocked")
            check(loss, argument, given, {"image_features[0]"} if frozen else None)


@every_tensor
def test_it_shows_where_nothing_can_be_looked_at(loss, argument, monkeypatch):
    """As on a GPU, where a check would wait; scales and weights out of range are NaN there too.

    A vector that is out of range itself gets a gradient of 0 there, beside the NaN of the others.
    """
    monkeypatch.setattr(checks, "can_look", lambda tensor: False)
    more = () if argument.name not in LOOKED_AT - {"logit_bias", *OFFSETS} else (-1.0,)
    more += (0.0,) if "scale" in argument.name else (2.0,) if "soft" in argument.name else ()
    for bad in (*KINDS, *more):
        given = spoiled(loss, argument, bad, backend="blocked")
        learned = {n for n in leaves_of(given) if not n.startswith(argument.name)}
        check(loss, argument, given, learned, looks=False)


@pytest.mark.parametrize("backend_name", ["blocked", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("bad", KINDS)
def test_a_teacher_of_any_dtype(bad, side, dtype, backend_name):
    """Its similarities are -inf or +inf all over its row, and vanish from the columns' softmax."""
    argument = Argument(f"teacher_{side}_features")
    for teacher_dtype in (None, torch.float8_e4m3fn):
        given = spoiled("fused_mfh_loss", argument, bad, backend=backend_name)
        given |= {n: v.to(dtype) for n, v in given.items() if n.endswith("features")}
        given["teacher_dtype"] = teacher_dtype
        check("fused_mfh_loss", argument, given)


FILTERED = [name for name, loss in PUBLIC.items() if "filter_margin" in annotations(loss)]


@pytest.mark.parametrize("loss", FILTERED)
@pytest.mark.parametrize("bad", KINDS)
def test_a_teacher_that_the_filter_alone_reads(loss, bad, backend):
    """No comparison shows what is not finite."""
    one = loss == "fused_intra_modal_loss"
    argument = Argument("teacher_features" if one else "teacher_image_features")
    given = spoiled(loss, argument, bad, backend=backend.name)
    given = {n: v for n, v in given.items() if n != "soft_weight"} | {"filter_margin": 0.1}
    if loss == "fused_mfh_loss":
        given["hard_weight"] = 1.0
    check(loss, argument, _moved(given, backend.device))


def test_thresholds_are_numbers_or_infinite(monkeypatch):
    """NaN is an error of this argument; where nothing can be looked at it shows."""
    given = spoiled("fused_mfh_loss", Argument("teacher_image_features"), 0.5, backend="blocked")
    rows = len(given["image_features"]), len(given["text_features"])
    given["filter_thresholds"] = tuple(torch.full((n,), torch.inf) for n in rows)
    plain = {name: value for name, value in given.items() if name != "filter_thresholds"}
    torch.testing.assert_close(fused_mfh_loss(**given), fused_mfh_loss(**plain))
    given["filter_thresholds"][1][2] = torch.nan
    with pytest.raises(ValueError, match=r"filter_thresholds\[1\] must not be NaN, got nan"):
        fused_mfh_loss(**given)
    monkeypatch.setattr(checks, "can_look", lambda tensor: False)
    leaves = leaves_of(plain)
    for leaf in leaves.values():
        leaf.requires_grad_()
    assert not not_nan(fused_mfh_loss(**given), leaves)


def test_a_scaler_skips_the_step_of_a_broken_teacher():
    weight = torch.ones(4, 4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    given = spoiled("fused_mfh_loss", Argument("teacher_text_features"), -torch.inf)
    given["image_features"] = given["image_features"] @ weight
    scaler.scale(fused_mfh_loss(**given)).backward()
    scaler.step(optimizer)
    assert torch.equal(weight.detach(), torch.ones(4, 4))


def test_a_teacher_that_is_not_read():
    """With hard_weight=1, as documented; then the step is a sound one."""
    given = spoiled("fused_mfh_loss", Argument("teacher_text_features"), torch.nan)
    leaves = leaves_of(given)
    for leaf in leaves.values():
        leaf.requires_grad_()
    fused_mfh_loss(**given, hard_weight=1.0).backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves.values())


@pytest.mark.parametrize(
    ("loss", "argument"),
    [
        ("fused_mfh_loss", Argument("teacher_image_features")),
        ("fused_mfh_loss", Argument("image_weights")),
        ("fused_cwcl_loss", Argument("teacher_text_features")),
        ("fused_siglip_loss", Argument("text_features")),
        ("fused_siglip_loss", Argument("logit_bias")),
    ],
    ids=str,
)
def test_inside_torch_compile(loss, argument):
    torch.compiler.reset()
    given = spoiled(loss, argument, -torch.inf, backend="blocked")
    if "folds" in given:
        given["folds"] = mxm.Folds.from_ids(*given["folds"])
    function = PUBLIC[loss]
    compiled = torch.compile(lambda given: function(**given), backend="aot_eager", fullgraph=True)
    leaves = {n: v for n, v in leaves_of(given).items() if not n.startswith(argument.name)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    assert not not_nan(compiled(given), leaves)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_near_the_greatest_number_are_no_fault(reduction):
    """Their sum in float32 would be infinite."""
    x = torch.eye(8, requires_grad=True)
    y = -torch.eye(8)
    losses = MFHLoss(rounds=None, reduction=reduction)(x, y, (1, 1), logit_scale=1e38)
    whole = torch.cat(losses) if reduction == "none" else losses
    whole.sum().backward()
    assert bool(whole.isfinite().all()) and bool(x.grad.isfinite().all())
