"""Modules and functions do not drift apart; modules hold no state."""

import inspect

import torch
from torch.nn.functional import normalize

from mxm_kernels import MFHLoss, fused_mfh_loss


def _parameters(function):
    return {k: v for k, v in inspect.signature(function).parameters.items() if k != "self"}


def test_signature_is_that_of_the_function():
    function = _parameters(fused_mfh_loss)
    init, forward = _parameters(MFHLoss.__init__), _parameters(MFHLoss.forward)
    assert not init.keys() & forward.keys()
    assert init.keys() | forward.keys() == function.keys()
    for name, parameter in (init | forward).items():
        assert parameter.default == function[name].default, name
        assert parameter.annotation == function[name].annotation, name
        if name in forward:
            assert parameter.kind == function[name].kind, name


def test_value_is_that_of_the_function():
    x, y = normalize(torch.randn(6, 4)), normalize(torch.randn(9, 4))
    teacher = {"teacher_image_features": y[:6], "teacher_text_features": normalize(y + 1)}
    options = {"hard_weight": 0.3, "rounds": 4, "reduction": "none", "backend": "blocked"}
    module = MFHLoss(**options)
    ours = module(
        x, y, (2, 3), logit_scale=9.0, generator=torch.Generator().manual_seed(1), **teacher
    )
    theirs = fused_mfh_loss(
        x,
        y,
        (2, 3),
        logit_scale=9.0,
        generator=torch.Generator().manual_seed(1),
        **teacher,
        **options,
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_state():
    module = MFHLoss()
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == "MFHLoss(hard_weight=0.6, rounds=10, reduction='mean', backend=None)"
