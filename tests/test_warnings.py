"""A warning of the package is an error of the suite, in this process and in those it starts."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import run_ranks

DEPRECATED = "this is deprecated"


def _as_of(module: str, category: type[Warning] = FutureWarning) -> None:
    """Warn as code of that module would."""
    warnings.warn_explicit(DEPRECATED, category, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["mxm_kernels", "mxm_kernels.distributed.ranks"])
@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
def test_here(module, category):
    with pytest.raises(category, match=DEPRECATED):
        _as_of(module, category)


def _warned(rank, world):
    dist.barrier()  # both have connected
    _as_of("mxm_kernels.distributed.ranks", UserWarning)


def _old_name(rank, world):
    dist.barrier()
    dist.all_gather_into_tensor(torch.empty(world), torch.ones(1))


def test_on_every_rank():
    values = run_ranks(2, _warned)
    assert [type(value) for value in values] == [UserWarning] * 2


@pytest.mark.skipif(not hasattr(dist, "all_gather_single"), reason="this torch has the older name")
def test_torch_would_say_it_of_a_name_that_it_has_renamed():
    values = run_ranks(2, _old_name)
    assert [type(value) for value in values] == [FutureWarning] * 2


@pytest.mark.new_process
def test_in_another_python():
    code = f"import warnings; warnings.warn_explicit({DEPRECATED!r}, UserWarning, 'f', 1, module="
    for module, fails in (("mxm_kernels.checks", True), ("another", False)):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}{module!r})"], capture_output=True, timeout=60
        )
        assert bool(done.returncode) == fails
