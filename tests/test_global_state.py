"""No public call changes what a process has one of; what draws, draws from where it says.

The lists of losses are read from the package: a new one is tested here by being public.
"""

import inspect
import subprocess
import sys
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import mxm_kernels as mxm
from mxm_kernels import data, open_clip, retrieval
from mxm_kernels.environment import report, self_check
from tests.support.global_state import GENERATOR, changed, global_state, unchanged
from tests.support.processes import results
from tests.support.public_losses import (
    FUNCTIONS,
    IDS,
    MODULES,
    OPEN_CLIP,
    Features,
    backward,
    call,
    call_module,
    call_open_clip,
    call_sentences,
    drawing,
    quiet,
)
from tests.support.surface import MODULES as PUBLIC_MODULES


@pytest.fixture
def unusual():
    """Everything is set that can be, so that a call which sets it to what is usual is found."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    cast = torch.get_autocast_dtype("cpu")
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(3)
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float64)
        stack.callback(torch.set_autocast_dtype, "cpu", cast)
        torch.set_autocast_dtype("cpu", torch.float16)
        stack.enter_context(torch.device("meta"))
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loss_that_draws_nothing_changes_nothing(name, backend, unusual):
    f = Features.make(backend.device)
    for options in quiet(FUNCTIONS[name], f):
        with unchanged():
            backward(call(FUNCTIONS[name], f, backend=backend.name, **options))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nor_does_it_under_autocast_or_without_gradients(name):
    f = Features.make()
    for options in quiet(FUNCTIONS[name], f):
        with torch.autocast("cpu", torch.bfloat16), unchanged():
            backward(call(FUNCTIONS[name], f, backend="blocked", **options))
        with torch.inference_mode(), unchanged():
            call(FUNCTIONS[name], f, backend="blocked", **options)


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if drawing(f)])
def test_a_loss_that_draws_takes_from_the_generator_of_its_device(name, backend, unusual):
    f, values = Features.make(backend.device), []
    generator = GENERATOR if backend.device.type == "cpu" else "the GPUs' generators"
    for _ in range(2):
        torch.manual_seed(5)
        for options in drawing(FUNCTIONS[name]):
            with unchanged(generator):
                values.append(call(FUNCTIONS[name], f, backend=backend.name, **options))
                backward(values[-1])
    assert torch.equal(*values)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_draws_nothing_changes_nothing(name, unusual):
    f = Features.make()
    for options in quiet(MODULES[name].function, f):
        with unchanged():
            backward(call_module(MODULES[name], f, backend="blocked", **options))


# Modules in the form of another library, some of which draw.
DROP_INS = {
    **{f"open_clip.{name}": partial(call_open_clip, kind) for name, kind in OPEN_CLIP.items()},
    "sentence_transformers.MultifoldLoss": partial(call_sentences, None),
    "sentence_transformers.MultifoldLoss, in expectation": partial(
        call_sentences, mxm.MFHLoss(rounds=None)
    ),
}
DRAWING = "open_clip.MFHLoss", "sentence_transformers.MultifoldLoss"


@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_changes_nothing_but_the_generator_that_it_draws_from(name, unusual):
    f = Features.make()
    with unchanged(*([GENERATOR] if name in DRAWING else [])):
        value = DROP_INS[name](f)
        backward(tuple(value.values()) if isinstance(value, dict) else value)


FOLDS = mxm.Folds.from_ids(IDS, IDS)
ITEM = data.MultifoldItem(4, [torch.zeros(2), torch.ones(2)], [torch.ones(1)])


def _cached(f):
    cache = mxm.GradientCache(2)
    encoder = torch.nn.Dropout(0.0)
    encoder.weight = torch.nn.Parameter(torch.ones(1, device="cpu"))
    features = cache.encode(encoder, f.x.detach())
    backward(mxm.fused_info_nce_loss(features, f.y, logit_scale=1.0))
    cache.backward()


def _budgets(f):
    with mxm.memory_budget(1 << 20):
        mxm.set_memory_budget(1 << 21, "cpu")


def _batches(f):
    dataset = data.MultifoldDataset([1] * 6, [2] * 6, IDS, IDS, views=1, captions=1)
    sampler = data.MultifoldBatchSampler(3, batch_size=2)
    return [[dataset[key] for key in keys] for keys in sampler]


# Every other public name: what of it computes, or "" for a type that only holds values.
OTHERS = {
    "BackendUnavailableError": "",
    "Diagnostics": lambda f: mxm.fused_mfh_loss(
        f.x, f.y, FOLDS, logit_scale=9.0, rounds=None, diagnostics=mxm.Diagnostics()
    ),
    "Folds": lambda f: FOLDS.to("cpu").pairs(6, 6) + mxm.Folds.uniform(2, 2).pairs(6, 6),
    "GradientCache": _cached,
    "Options": "",
    "Queue": lambda f: mxm.fused_info_nce_loss(
        f.x, f.y, logit_scale=9.0, text_queue=mxm.Queue(f.y.detach(), FOLDS)
    ),
    "Rows": "",
    "draw_selection": lambda f: mxm.draw_selection(
        FOLDS, f.x, f.y, rounds=2, generator=torch.Generator("cpu")
    ),
    "fold_mean": lambda f: backward(mxm.fold_mean(f.x, 2)[0] + mxm.fold_mean(f.y, IDS)[0]),
    "get_memory_budget": lambda f: mxm.get_memory_budget("cpu"),
    "memory_budget": _budgets,
    "set_memory_budget": lambda f: mxm.set_memory_budget(None),
    "data.InstanceKey": lambda f: data.InstanceKey(3).generator().random(),
    "data.MultifoldBatch": lambda f: data.collate_multifold([ITEM]).to("cpu"),
    "data.MultifoldBatchSampler": _batches,
    "data.MultifoldDataset": _batches,
    "data.MultifoldItem": "",
    "data.collate_multifold": lambda f: data.collate_multifold([ITEM, ITEM]),
    "open_clip.patch": lambda f: open_clip.patch().close(),
    "open_clip.patch_mfh": lambda f: open_clip.patch_mfh().close(),
    "retrieval.Retrieval": "",
    "retrieval.RetrievalMetrics": "",
    "retrieval.retrieval_metrics": lambda f: retrieval.retrieval_metrics(f.x, f.y, FOLDS),
}


def test_every_public_name_is_called_here():
    names = {
        f"{module.__name__}.{name}".removeprefix("mxm_kernels.")
        for module in PUBLIC_MODULES
        for name in module.__all__
    }
    assert names - OTHERS.keys() - DROP_INS.keys() == FUNCTIONS.keys() | MODULES.keys()


@pytest.mark.parametrize("name", [name for name, call in OTHERS.items() if call])
def test_the_other_public_calls_change_nothing(name, unusual):
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip_train.main")
    f = Features.make()
    with unchanged():
        OTHERS[name](f)


def test_a_draw_without_a_generator_takes_from_the_default_one():
    f = Features.make()
    with unchanged(GENERATOR):
        mxm.draw_selection(FOLDS, f.x, f.y, rounds=2)


def test_the_environment_report_and_its_check_change_nothing():
    with unchanged():
        report.text(report.gather(check=False))
        self_check.run([("blocked", torch.device("cpu"), torch.float32)])


def _over_ranks(rank, world, gather):
    """What each loss changed on this rank and should not have; the values of those that draw."""
    wrong, drawn, f = [], {}, Features.make()
    options = {"process_group": dist.group.WORLD, "gather": gather, "backend": "blocked"}

    def look(name, make, *may):
        before = global_state()
        value = make()
        backward(value)
        wrong.extend((name, what) for what in changed(before) if what not in may)
        return value

    for name, function in FUNCTIONS.items():
        for more in quiet(function, f, world):
            look((name, *more), partial(call, function, f, **options, **more))
        for more in drawing(function):
            torch.manual_seed(10 + rank)
            torch.randint(2**62, ())
            one_number = torch.get_rng_state()
            torch.manual_seed(10 + rank)
            value = look(name, partial(call, function, f, **options, **more), GENERATOR)
            drawn[name] = value.detach()
            if not torch.equal(torch.get_rng_state(), one_number):
                wrong.append((name, "not one number"))
    for name, kind in MODULES.items():
        more = next(quiet(kind.function, f, world))
        look(name, partial(call_module, kind, f, **options, **more))
    for name, kind in OPEN_CLIP.items():
        fixed = {"rank": rank, "world_size": world}
        if "gather_with_grad" in inspect.signature(kind).parameters:
            fixed["gather_with_grad"] = True
        may = [GENERATOR] if f"open_clip.{name}" in DRAWING else []
        look(f"open_clip.{name}", partial(call_open_clip, kind, f, **fixed), *may)
    sentences = mxm.MFHLoss(rounds=None, process_group=dist.group.WORLD)
    look("sentence_transformers.MultifoldLoss", partial(call_sentences, sentences, f))
    return wrong, drawn


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("world", [1, 2])
def test_over_ranks_a_loss_changes_nothing_but_takes_one_number_where_it_draws(world, gather):
    (wrong, drawn), *others = results(world, _over_ranks, gather)
    assert not wrong
    assert drawn.keys() == {name for name, f in FUNCTIONS.items() if drawing(f)}
    for wrong, values in others:
        assert not wrong
        for name, value in values.items():
            assert torch.equal(value, drawn[name]), name


FRESH = """
import numpy, torch, torch.distributed
import sympy  # torch imports it late, and it filters a warning of its own
from tests.support.global_state import changed, global_state

before = global_state()
import mxm_kernels.data, mxm_kernels.open_clip, mxm_kernels.retrieval
import mxm_kernels.sentence_transformers
assert not changed(before), changed(before)

from mxm_kernels import backends, fused_info_nce_loss
from tests.support.public_losses import Features, backward, call
for name in backends.REGISTRY:
    if backends.load(name).unavailable(torch.device("cpu"), torch.float32) is None:
        backward(call(fused_info_nce_loss, Features.make(), backend=name))
        assert not changed(before), (name, changed(before))
"""


@pytest.mark.new_process
def test_importing_the_package_and_loading_its_backends_changes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
