"""The public memory budget: how it is set and asked for."""

import pickle
import threading

import numpy as np
import pytest
import torch

from mxm_kernels import MFHLoss, get_memory_budget, memory, memory_budget, set_memory_budget

DEFAULT = 64 << 20  # of a CPU


@pytest.fixture(autouse=True)
def default_budget():
    """Every test begins and ends with the defaults."""
    set_memory_budget(None)
    yield
    set_memory_budget(None)


def both():
    return get_memory_budget("cpu"), get_memory_budget("cuda")


def test_it_is_set_for_one_type_of_device_or_for_both():
    default = both()
    assert default[0] == DEFAULT
    set_memory_budget(5, "cpu")
    assert both() == (5, default[1])
    set_memory_budget(6, "cuda")
    assert both() == (5, 6)
    set_memory_budget(7)
    assert both() == (7, 7)
    set_memory_budget(0, "cpu")
    assert both() == (0, 7)
    set_memory_budget(None, "cuda")
    assert both() == (0, default[1])
    assert set_memory_budget(None) is None
    assert both() == default


def test_integers_of_any_kind_become_ints():
    for value in (np.int32(3), np.uint64(3), 3):
        set_memory_budget(value)
        assert both() == (3, 3) and type(both()[0]) is int
    set_memory_budget(2**63 - 1)
    assert both() == (2**63 - 1,) * 2


@pytest.mark.parametrize(
    ("nbytes", "error", "came"),
    [
        (True, TypeError, "got bool"),
        (np.True_, TypeError, "got bool"),
        (1e9, TypeError, "got float"),
        ("1GiB", TypeError, "got str"),
        (torch.tensor(3), TypeError, "got Tensor"),
        (-1, ValueError, "from 0 to .*got -1"),
        (2**63, ValueError, "got 9223372036854775808"),
    ],
    ids=str,
)
def test_what_is_no_number_of_bytes_is_an_error_and_changes_nothing(nbytes, error, came):
    before = both()
    with pytest.raises(error, match=rf"^nbytes must be .*{came}"):
        set_memory_budget(nbytes)
    with pytest.raises(error, match=rf"^nbytes must be .*{came}"), memory_budget(nbytes):
        raise AssertionError("the block ran")
    assert both() == before


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:0", 0, torch.device("cuda:1"), np.zeros(2), ["cpu", "cuda"]], ids=repr
)
def test_a_type_of_device_is_cpu_or_cuda(device):
    before = both()
    with pytest.raises(ValueError, match=r"^device must be 'cpu', 'cuda' or None.*got "):
        set_memory_budget(3, device)
    assert both() == before


def test_it_is_asked_for_by_type_or_device():
    set_memory_budget(3, "cpu")
    set_memory_budget(4, "cuda")
    assert get_memory_budget(torch.device("cpu")) == 3
    assert get_memory_budget(torch.device("cuda")) == get_memory_budget(torch.device("cuda:1")) == 4
    for wrong in ("meta", torch.device("meta"), None, 0, "cuda:0", np.zeros(2)):
        with pytest.raises(ValueError, match=r"^device must be 'cpu', 'cuda' or a torch\.device"):
            get_memory_budget(wrong)
    assert memory.budget_of(torch.device("meta")) == 3  # operators are traced on such a device


def test_the_default_of_a_gpu_is_a_part_of_its_memory():
    assert memory.default_of_card(24 << 30) == 24 << 26
    assert memory.default_of_card(141 << 30) == 4 << 30
    if not torch.cuda.is_available():
        assert get_memory_budget("cuda") == get_memory_budget(torch.device("cuda:0")) == 4 << 30
        return
    total = torch.cuda.get_device_properties(0).total_memory
    assert get_memory_budget(torch.device("cuda:0")) == min(total // 16, 4 << 30)


def test_a_block_puts_back_what_was_there():
    default = both()
    with memory_budget(1):
        with memory_budget(2, "cpu"):
            assert both() == (2, 1)
            with memory_budget(None, "cpu"):
                assert both() == (DEFAULT, 1)
            assert both() == (2, 1)
            set_memory_budget(3, "cuda")  # not this block's
        assert both() == (1, 3)
        with pytest.raises(KeyError), memory_budget(4):
            raise KeyError
        assert both() == (1, 3)
    assert both() == default

    @memory_budget(9, "cpu")
    def decorated():
        return both()

    assert decorated()[0] == decorated()[0] == 9
    assert both() == default


def test_other_threads_see_it():
    seen = []

    def look():
        seen.append(get_memory_budget("cpu"))

    with memory_budget(123, "cpu"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [123]


def test_a_loss_that_is_pickled_has_no_budget():
    module = pickle.dumps(MFHLoss(rounds=3))
    with memory_budget(7):
        assert pickle.dumps(MFHLoss(rounds=3)) == module
        pickle.loads(module)
        assert both() == (7, 7)
