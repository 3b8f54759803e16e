"""The memory budget over ranks: what each of them keeps, and that backward has forward's."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist

from mxm_kernels import backends, memory_budget
from tests.support.distributed import Towers, inputs, layout, loss
from tests.support.processes import results
from tests.support.watched import watch

ENOUGH = 1 << 30  # to keep all that these tests make
# Calls of an operator in a forward and in a backward over two ranks, all texts at once.
LOSSES = {"mfh": (1, 1), "row scales": (2, 2), "siglip": (1, 1), "intra modal soft": (3, 4)}
KEPT = ("mfh", "row scales", "intra modal soft")  # the sigmoid operators keep nothing


def step(rank, world, name, gather, backend, grad):
    """The calls of a rank's step, and the shapes of what autograd saves."""
    from mxm_kernels.losses import intra_modal_soft

    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intra_modal_soft, "SMALL", 0)
        watched, plan, model = watch(backend, patch), layout(world), Towers()
        data, (rows, cols) = inputs(plan, torch.float32), plan.rows(rank)
        x, y, scale = model(data["image"][rows], data["text"][cols])
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda v: (saved.append(tuple(v.shape)), v)[1], lambda v: v
        )
        given = name, plan, rank, (x, y, scale), torch.float32, dist.group.WORLD
        with memory_budget(ENOUGH), torch.set_grad_enabled(grad), hooks:
            value = loss(*given, gather=gather, backend=backend)
        if grad:
            with memory_budget(ENOUGH + 1):
                value.backward()
    watched.storages.clear()
    return watched, saved


@pytest.fixture(params=["native", "blocked"])
def name_of_backend(request):
    """Those that run on a CPU by themselves."""
    reason = backends.load(request.param).unavailable(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_backward_has_the_budget_of_its_forward(name, gather, name_of_backend):
    for watched, saved in results(2, step, name, gather, name_of_backend, True):
        assert watched.budgets == {ENOUGH}
        if gather == "all":
            assert (len(watched.forward), len(watched.backward)) == LOSSES[name]
            assert any(m.keep for m in watched.forward) is (name in KEPT)
            assert watched.kept == watched.promised
            filled = Counter(shape for shape in watched.kept if len(shape) == 3)
            assert filled <= Counter(saved), "filled and dropped"
        else:
            assert not any(m.keep for m in watched.forward) and not watched.keeps


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_without_grad_nothing_is_kept(name, gather, name_of_backend):
    """Inside of an autograd.Function inputs want their gradients without grad mode, too."""
    for watched, _ in results(2, step, name, gather, name_of_backend, False):
        assert not any(m.keep for m in watched.forward)
        assert not watched.keeps
