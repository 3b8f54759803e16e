"""From candidates to a file that ``launch.pick`` reads, in the interpreter."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from mxm_kernels import fused_info_nce_loss
from mxm_kernels.backends.triton import candidates, launch, tuned
from mxm_kernels.backends.triton.settings import Cell, Launch
from mxm_kernels.tuning import check, compile, race, tune, worker
from mxm_kernels.tuning.workload import small, timed

CPU = torch.device("cpu")
CELL = Cell("statistics", torch.bfloat16, False, 16, 20)
PHASES = ("statistics", "gradient", "sigmoid_statistics", "sigmoid_gradient")


def quiet(what):
    pass


@pytest.fixture
def two(monkeypatch):
    """Two candidates, and one round of them."""
    monkeypatch.setattr(candidates, "_TINY", ((16, 16, 1), (16, 32, 1)))
    monkeypatch.setattr(candidates, "GROUPS", (1,))
    monkeypatch.setattr(tune, "GROUPS", (1,))
    monkeypatch.setattr(race, "ROUNDS", 1)


def test_end_to_end(two, monkeypatch):
    """Measured, written, read by ``pick``, and a loss runs with it."""
    cells = [CELL, replace(CELL, phase="gradient", teacher=True)]
    found = tune.tune(cells, CPU, 60.0, quiet)
    assert [of.cell for of in found] == cells
    for of in found:
        assert of.faults == [] and len(of.right) == of.asked == 2
        assert set(of.races[0]) == set(of.right) and of.best in of.races[-1]
    tuned.write([of.entry(CPU) for of in found])
    assert launch.in_force(CPU) == {}  # a process reads the file once, and this one has
    launch.in_force.cache_clear()
    assert launch.in_force(CPU) == {tuned.key(of.cell): of.best for of in found}
    other = Launch(16, 32, 16, 1, 1, 2)
    tuned.write([replace(found[0].entry(CPU), launch=other)])
    launch.in_force.cache_clear()
    picked = []
    pick = launch.pick
    monkeypatch.setattr(launch, "pick", lambda *a, **k: picked.append(pick(*a, **k)) or picked[-1])
    x = torch.randn(20, 16).bfloat16().requires_grad_()
    fused_info_nce_loss(x, x.detach(), logit_scale=5.0, backend="triton").backward()
    stored = replace(CELL, phase="stored_gradient").shipped("interpreter")
    assert set(picked) == {other, stored, CELL.shipped("interpreter")}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("teacher", [False, True])
def test_the_sample_of_a_large_batch_sees_what_is_wrong(phase, teacher, monkeypatch):
    if teacher and phase.startswith("sigmoid"):
        pytest.skip("SigLIP has no teacher")
    monkeypatch.setattr(check, "SAMPLE", 7)
    w = timed(replace(CELL, phase=phase, teacher=teacher), CPU)
    got = w.run(tune.load("triton"), check.EVERYTHING)
    sample = check.Sample(w)
    assert sample.wrong(got) is None
    for name, side, first in check_names(got, len(w.problem.x)):
        bad = getattr(got, name).clone()
        bad[first + getattr(sample, side)[0]] *= 1.05
        fault = sample.wrong(got._replace(**{name: bad}))
        assert fault is not None and fault.startswith(f"{side} of a sample: ")


def check_names(got, images):
    """The results that are there of images and of texts, and where those begin."""
    for name, value in got._asdict().items():
        if name in ("x", "y"):
            yield name, "images" if name == "x" else "texts", 0
        elif name not in check.UNCHECKED and value.ndim and len(value) == 2 * images:
            yield name, "images", 0
            if name != "positives":  # of images and of texts, whose samples have both places
                yield name, "texts", images


@pytest.mark.parametrize("place", [1, 2], ids=["the table's own", "another"])
def test_a_launch_that_the_sample_shows_wrong_is_named_and_not_raced(two, monkeypatch, place):
    right = check.Sample.wrong
    seen = []

    def one_is_wrong(self, got):
        seen.append(1)
        return "neg_lse is off by 1" if len(seen) == place else right(self, got)

    monkeypatch.setattr(check.Sample, "wrong", one_is_wrong)
    launches = candidates.candidates(CELL, "interpreter", 1 << 20)
    found = tune.Found(CELL, launches[0], 2, launches)
    tune.raced(found, CPU, 30.0, quiet)
    wrong, other = launches[place - 1], launches[2 - place]
    assert found.faults == [(wrong, "neg_lse is off by 1")]
    assert list(found.races[0]) == [other] and replace(found.best, group=other.group) == other
    assert (found.milliseconds[1] is None) == (place == 1)
    assert found.entry(CPU).launch == found.best


def test_nothing_compiled_is_nothing_raced():
    found = tune.Found(CELL, CELL.shipped("interpreter"), 2)
    tune.raced(found, CPU, 30.0, quiet)
    assert found.best is None and found.entry(CPU) is None


def test_jobs_take_the_cells_in_turn():
    cells = [CELL, replace(CELL, phase="gradient")]
    order = tune.jobs(cells, CPU)
    assert [cell for cell, _ in order[:4]] == [*cells, *cells]
    assert len(order) == sum(len(candidates.candidates(c, "interpreter", 1 << 20)) for c in cells)


# Processes that compile.


def outcomes(jobs, seconds=60.0, workers=1):
    found = []
    compile.compile_all(jobs, CPU, workers, seconds, found.append)
    return {outcome.launch: outcome.fault for outcome in found}


def test_workers_answer_and_a_launch_that_cannot_run_has_its_reason():
    shipped = CELL.shipped("interpreter")
    broken = replace(shipped, cols=24)  # no power of two
    found = outcomes([(CELL, shipped), (CELL, broken)])
    assert found[shipped] is None
    assert "power of 2" in found[broken]


def test_a_worker_that_crashes_takes_its_job_along_and_no_other(monkeypatch, tmp_path):
    module = tmp_path / "crashing.py"
    module.write_text(
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    if '\"stages\": 9' in line: os._exit(3)\n"
        "    if '\"stages\": 7' in line: os.kill(os.getpid(), 9)\n"
        "    print('{\"fault\": null}', flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compile.worker, "__name__", "crashing")
    launches = [Launch(16, 16, 16, 1, stages) for stages in (1, 9, 7, 2)]
    found = outcomes([(CELL, one) for one in launches])
    ended = "its process ended with status"
    assert [found[one] for one in launches] == [None, f"{ended} 3", f"{ended} -9", None]


def test_what_is_not_done_in_time_is_late_and_no_fault(monkeypatch, tmp_path):
    (tmp_path / "sleeping.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compile.worker, "__name__", "sleeping")
    first, second = (Launch(16, 16, 16, 1, stages) for stages in (1, 2))
    assert outcomes([(CELL, first), (CELL, second)], seconds=0.5) == {first: compile.LATE}
    found = tune.compiled([CELL], CPU, 0.5, quiet)[CELL]
    assert found.right == [] and found.faults == [] and found.asked == 3


def test_a_job_is_a_line_that_comes_back_as_it_was():
    line = worker.job(CELL, CPU, CELL.shipped("interpreter"))
    assert "\n" not in line
    assert worker.answer(line) == {"fault": None}


def test_the_small_batch_sees_a_wrong_launch(monkeypatch):
    w = small(CELL, CPU)
    wanted = check.expected(w)
    got = w.run(tune.load("triton"), check.EVERYTHING)
    assert check.wrong(w, got, wanted) is None
    assert check.wrong(w, got._replace(neg_lse=got.neg_lse * torch.nan), wanted) == (
        "neg_lse is off by inf, allowed 1e-05"
    )


def test_races_are_interleaved_and_the_first_is_in_every_round(monkeypatch):
    order, w = [], timed(CELL, CPU)
    launches = [Launch(16, 16, 16, 1, stages) for stages in range(1, 15)]
    seconds = {one: 1.0 + place for place, one in enumerate(reversed(launches))}
    monkeypatch.setattr(race, "_run", lambda w, one: order.append(one))
    monkeypatch.setattr(
        race,
        "one_after_the_other",
        lambda calls, device: [c() or seconds[order[-1]] for c in list(calls)],
    )
    found = race.race(w, launches, 60.0)
    assert found == seconds
    warm, rest = order[: len(launches)], order[len(launches) :]
    assert warm == launches and rest[: 3 * len(launches)] == 3 * launches
    last = rest[3 * len(launches) :]
    assert last.count(launches[0]) == race.ROUNDS - race.HEATS  # slowest of all, and the table's
    assert set(last) == {launches[0], *launches[-race.KEPT :]}
