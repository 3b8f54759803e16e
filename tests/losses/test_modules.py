"""Modules and functions do not drift apart; modules hold no state."""

import inspect
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels.core.options import HyperParameters, Inputs, Resolved

MODULES = [getattr(mxm, name) for name in mxm.__all__ if name.endswith("Loss")]
_BUNDLES = {"self", "options", "inputs"}


def _parameters(function):
    parameters = inspect.signature(function).parameters
    return {k: v for k, v in parameters.items() if k not in _BUNDLES}


def test_every_function_has_the_module_of_its_name():
    functions = {getattr(mxm, name) for name in mxm.__all__ if name.startswith("fused_")}
    assert {module.function for module in MODULES} == functions
    for module in MODULES:
        name = module.function.__name__.removeprefix("fused_").replace("_", "")
        assert name == module.__name__.lower()


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_signature_is_that_of_the_function(module):
    function = _parameters(module.function)
    init, forward = _parameters(module.__init__), _parameters(module.forward)
    assert not init.keys() & forward.keys()
    assert init.keys() | forward.keys() == function.keys()
    for name, parameter in (init | forward).items():
        assert parameter.default == function[name].default, name
        if name in forward:
            assert parameter.kind == function[name].kind, name


def test_options_are_split_between_constructor_and_forward():
    hyper, inputs = set(HyperParameters.__annotations__), set(Inputs.__annotations__)
    assert not hyper & inputs
    assert hyper | inputs == set(mxm.Options.__annotations__) == set(Resolved._fields)


CALLS = {
    "mfh": (partial(mxm.MFHLoss, 0.3, 4), {"hard_weight": 0.3, "rounds": 4}, (2, 3)),
    "hard": (partial(mxm.HardLoss, 2), {"rounds": 2, "soft_weight": 0.2}, (2, 3)),
    "supcon": (partial(mxm.SupConLoss, "in"), {"positives": "in", "soft_weight": 0.2}, (2, 3)),
    "debiased": (
        partial(mxm.DebiasedLoss, 0.2),
        {"positive_prior": 0.2, "soft_weight": 0.2, "label_smoothing": 0.1},
        (2, 3),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_value_is_that_of_the_function(name):
    make, hyper, folds = CALLS[name]
    x, y = normalize(torch.randn(6, 4)), normalize(torch.randn(9, 4))
    teacher = {"teacher_image_features": y[:6], "teacher_text_features": normalize(y + 1)}
    shared = {k: v for k, v in hyper.items() if k in HyperParameters.__annotations__}
    shared |= {"reduction": "none", "backend": "blocked"}
    module = make(**shared)

    def draw():
        if name not in ("mfh", "hard"):
            return {}
        return {"generator": torch.Generator().manual_seed(1)}

    ours = module(x, y, folds, logit_scale=9.0, **draw(), **teacher)
    theirs = module.function(x, y, folds, logit_scale=9.0, **draw(), **teacher, **hyper | shared)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_no_state(module):
    assert not list(module().parameters())
    assert not module().state_dict()


def test_representation():
    assert repr(mxm.MFHLoss()) == "MFHLoss(hard_weight=0.6, rounds=10)"
    assert repr(mxm.InfoNCELoss(reduction="none")) == (
        "InfoNCELoss(mask_false_negatives=True, reduction='none')"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mxm.MFHLoss(hard_weight=2), ValueError, "hard_weight must be between 0 and 1"),
        (lambda: mxm.MFHLoss(soft_weight=0.1), TypeError, "takes hard_weight"),
        (lambda: mxm.HardLoss(rounds=0), ValueError, "rounds must be at least 1"),
        (lambda: mxm.SupConLoss("both"), ValueError, "positives must be 'out' or 'in'"),
        (lambda: mxm.DebiasedLoss(1.0), ValueError, "positive_prior must be at least 0 and below"),
        (lambda: mxm.InfoNCELoss(1), TypeError, "mask_false_negatives must be True or False"),
        (lambda: mxm.SoftLoss(reduction="sum"), ValueError, "reduction must be 'mean' or 'none'"),
        (lambda: mxm.CWCLLoss(label_smoothing=0.1), TypeError, "takes no label_smoothing"),
        (lambda: mxm.SelfDistillationLoss(soft_weight=1), TypeError, "takes soft_share"),
        (lambda: mxm.DecoupledLoss(image_weights=None), TypeError, "image_weights comes with each"),
        (lambda: mxm.IntraModalLoss(reduction="x"), ValueError, "reduction must be"),
        (lambda: mxm.IntraModalLoss(gather="x"), ValueError, "gather must be 'all' or 'ring'"),
        (lambda: mxm.IntraModalLoss(gather="ring"), ValueError, "needs a process_group"),
    ],
)
def test_bad_hyper_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["logit_scale", "diagnostics", "generator"])
def test_what_comes_with_a_batch_is_no_hyper_parameter(name):
    with pytest.raises(TypeError, match=f"{name} comes with each batch: give it to the call of MF"):
        mxm.MFHLoss(**{name: None})


@pytest.mark.parametrize("change", [{"rounds": 3}, {"reduction": "mean"}])
def test_a_hyper_parameter_is_not_given_to_the_call(change):
    criterion = mxm.MFHLoss(rounds=None, reduction="none")
    with pytest.raises(TypeError, match="is fixed by the constructor of MFHLoss: give it there"):
        criterion(torch.eye(4), torch.eye(4), (2, 2), logit_scale=1.0, **change)


def test_a_hyper_parameter_that_the_constructor_left_at_its_default_is_not_given_either():
    with pytest.raises(TypeError, match="label_smoothing is fixed by the constructor of HardLoss"):
        mxm.HardLoss()(torch.eye(4), torch.eye(4), (2, 2), logit_scale=1.0, label_smoothing=0.1)


def test_a_misspelled_backend_is_found_when_the_module_is_built():
    with pytest.raises(ValueError, match="backend must be one of triton, native, blocked or None"):
        mxm.SupConLoss(backend="tritn")
