"""Every public loss with every option that it takes, alone and in pairs, against the references."""

import random
from functools import cache

import pytest
import torch

import mxm_kernels as mxm
from mxm_kernels.core.options import Resolved
from tests.support.agreement import check
from tests.support.backend import BackendUnderTest
from tests.support.cases import Case
from tests.support.family import LOSSES, keyword_arguments
from tests.support.options import ELSEWHERE, OPTIONS, OWN, every, pairs, singles

TINY = Case((0, 1, 2, 1, 0, 2), (2, 1, 0, 0, 2, 1))  # 3 instances, each with 2 views and 2 texts
CPU = torch.device("cpu")
BLOCKED = BackendUnderTest("blocked", CPU)
PUBLIC = {name: getattr(mxm, name) for name in mxm.__all__ if name.startswith("fused_")}
NAMES = [*OPTIONS, *ELSEWHERE]


def test_every_option_of_the_package_is_drawn_here_or_named():
    assert set(NAMES) - {"logit_scale"} == set(Resolved._fields)
    assert not OPTIONS.keys() & ELSEWHERE.keys()


def test_every_public_loss_is_drawn_here():
    assert {loss.function.__name__ for loss in LOSSES.values()} == PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_a_loss_is_an_option_or_named_as_its_own(name):
    assert keyword_arguments(PUBLIC[name]) - set(NAMES) == OWN.get(name, set())


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_is_taken_or_refused(name):
    """By its name, before anything else of the call is looked at."""
    loss = LOSSES[name]
    taken = {*loss.options, *keyword_arguments(loss.function), *ELSEWHERE}
    refused = {*NAMES} - taken if loss.one_modality else set(loss.function.not_taken)
    assert refused <= {*NAMES, "folds"}
    x = torch.ones(6, 8)
    features = (x,) if loss.one_modality else (x, x)
    for option in refused:
        with pytest.raises(TypeError, match=f"takes .*{option}|unexpected .* '{option}'"):
            loss.fused(*features, logit_scale=1.0, **{option: None})


@pytest.mark.parametrize("name", LOSSES)
def test_options_and_pairs_of_options(name):
    loss = LOSSES[name]
    for choice in every(loss.options):
        check(loss, TINY, choice, torch.float64, BLOCKED)


@cache
def _drawn(number: int) -> list:
    """Pairs of a loss and two or one of its options, at random."""
    made = [(loss, choice) for loss in LOSSES.values() for choice in pairs(loss.options)]
    return random.Random(0).sample(made, number)


@pytest.mark.parametrize("name", LOSSES)
def test_options_alone(name, backend):
    if backend.name == "blocked" and backend.device == CPU:
        pytest.skip("blocked-cpu: in float64 above")
    for choice in singles(LOSSES[name].options):
        check(LOSSES[name], TINY, choice, torch.float32, backend)


@pytest.mark.parametrize("part", range(4))
def test_drawn_pairs(part, backend):
    if backend.name == "blocked" and backend.device == CPU:
        pytest.skip("blocked-cpu: in float64 above")
    for loss, choice in _drawn(200)[part::4]:
        check(loss, TINY, choice, torch.float32, backend)
