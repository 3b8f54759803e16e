"""Which launch a batch gets by where its factors lie; what is measured is in test_tuned.py."""

import pytest
import torch

launch = pytest.importorskip("mxm_kernels.backends.triton.launch")
settings = pytest.importorskip("mxm_kernels.backends.triton.settings")
from mxm_kernels.folds import Folds  # noqa: E402
from mxm_kernels.ops.library import make_problem  # noqa: E402

ROWS, D = 8, 16


def features(shift=0):
    """Features that begin ``shift`` numbers after a multiple of 16 bytes."""
    memory = torch.zeros(ROWS * D + 16, dtype=torch.bfloat16)
    start = -memory.data_ptr() // memory.itemsize % 8 + shift
    return memory[start : start + ROWS * D].view(ROWS, D)


def problem(shifts):
    tables = Folds.uniform(1, 1).tables(ROWS, ROWS, torch.device("cpu"))
    x, y, *teacher = (features(shift) for shift in shifts)
    return make_problem(x, y, tuple(teacher), torch.ones(()), torch.ones(()), tables)


@pytest.fixture
def on(monkeypatch):
    """Pretend to be a target on which nothing was measured."""

    def pretend(target):
        monkeypatch.setattr(launch, "target", lambda device: target)
        monkeypatch.setattr(launch, "in_force", lambda device: {})
        return settings.SETTINGS[target]["statistics"]

    return pretend


def test_aligned_factors_take_the_launch_of_descriptors(on):
    setting = on("sm_90")
    assert launch.pick_placed("statistics", problem([0, 8, 0, 0])) == setting.teacher


@pytest.mark.parametrize("place", range(4))
def test_one_factor_out_of_line_takes_the_launch_of_pointers(place, on):
    shifts = [0] * 4
    shifts[place] = 1
    setting = on("sm_90")
    assert launch.pick_placed("statistics", problem(shifts)) == setting.pointers != setting.teacher


def test_a_target_without_descriptors_has_one_launch_for_both(on):
    setting = on("sm_80")
    assert setting.pointers is None
    assert launch.pick_placed("statistics", problem([1, 1, 1, 1])) == setting.teacher


def test_what_is_planned_for_every_batch_looks_at_no_address(on):
    """While torch.compile traces there is none. The tiles of pointers have room all the same."""
    setting = on("sm_90")
    assert launch.pick("statistics", problem([1, 1, 1, 1])) == setting.teacher
    for phases in settings.SETTINGS.values():
        for setting in phases.values():
            for other in (setting.student, setting.teacher) if setting.pointers else ():
                assert other.cols % setting.pointers.cols == 0
                assert other.rows % setting.pointers.rows == 0


def test_a_launch_that_is_forced_stays(on):
    on("sm_90")
    forced = settings.Launch(16, 16, 16, 1, 1)
    with launch.forced("statistics", forced):
        assert launch.pick_placed("statistics", problem([1, 0, 0, 0])) == forced
