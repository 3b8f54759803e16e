"""Ctrl-C is heard in the midst of a pass over a large batch, and not seconds after it."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import Folds, fused_supcon_loss
from mxm_kernels.backends import native
from mxm_kernels.backends.interface import Memory, Needs, Problem, SigmoidWeights, Upstream
from mxm_kernels.backends.row_interface import Draw

pytestmark = pytest.mark.skipif(native.cpp is None, reason="built without a compiler")
CPU = torch.device("cpu")
MEMORY = Memory(64 << 20)
ROWS = 60_000  # a pass takes 10 s and more of a CPU with two cores
BOUND = 3.0  # seconds; on an idle CPU it is a twentieth of one
BACKEND = native.backend


def _problem(dtype: torch.dtype, taught: bool = False) -> Problem:
    g = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(ROWS, 32, generator=g), dim=1).to(dtype) for _ in range(2))
    tables = Folds.uniform(2, 2).tables(ROWS, ROWS, CPU)
    scale = torch.tensor(9.0)
    teacher = (y, x, scale, scale) if taught else (None, None, scale, None)
    return Problem(x, y, *teacher, *tables.pair_tables())


def _forward(problem):
    BACKEND.forward(problem, MEMORY)


def _backward(problem):
    made = problem.allocate(False)
    statistics = made._make(torch.zeros_like(v) for v in made)
    upstream = Upstream(*map(torch.ones_like, statistics[: len(Upstream._fields)]))
    BACKEND.backward(problem, statistics, upstream, Needs(True, True, True), MEMORY)


def _sigmoid_forward(problem):
    BACKEND.sigmoid_forward(problem, torch.tensor(-9.0), MEMORY)


def _sigmoid_loss(problem):
    weights = SigmoidWeights(torch.ones(2 * ROWS), torch.ones(0))
    needs = Needs(True, True, True)
    BACKEND.sigmoid_loss(problem, torch.tensor(-9.0), weights, needs, MEMORY)


def _draw():
    offsets = torch.arange(0, 4 * ROWS + 1, 4)
    BACKEND.drawn_weights(Draw(torch.tensor(3), offsets, 1 << 22, 4 * ROWS), torch.float32)


def _late(run) -> float:
    """Seconds from a signal, sent while it runs, to the error."""
    sent = []

    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, send)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (the signal has to come inside)
            timer.start()
            run()
            time.sleep(60)
    finally:  # another error must not leave it to stop the tests
        timer.cancel()
        timer.join()
    return time.monotonic() - sent[0]


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@DTYPES
@pytest.mark.parametrize("taught", [False, True], ids=["plain", "teacher"])
@pytest.mark.parametrize("run", [_forward, _backward])
def test_in_a_pass(run, taught, dtype):
    problem = _problem(dtype, taught)
    assert _late(lambda: run(problem)) < BOUND


@DTYPES
@pytest.mark.parametrize("run", [_sigmoid_forward, _sigmoid_loss])
def test_in_a_pass_of_the_sigmoid_loss(run, dtype):
    problem = _problem(dtype)
    assert _late(lambda: run(problem)) < BOUND


def test_in_a_draw_of_millions_of_rounds():
    assert _late(_draw) < BOUND


def test_what_was_interrupted_runs_again():
    """A pass leaves nothing behind: the same call gives what it would have given."""
    x = normalize(torch.randn(256, 32), dim=1).bfloat16().requires_grad_()
    before = fused_supcon_loss(x, x, (2, 2), logit_scale=9.0, backend="native")
    problem = _problem(torch.bfloat16)
    _late(lambda: _forward(problem))
    after = fused_supcon_loss(x, x, (2, 2), logit_scale=9.0, backend="native")
    assert torch.equal(before, after)
