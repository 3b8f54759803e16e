"""What the operators make of the memory budget, on every backend: none of them has to keep."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from mxm_kernels import (
    Folds,
    backends,
    fused_intra_modal_loss,
    fused_mfh_loss,
    fused_siglip_loss,
    memory_budget,
    set_memory_budget,
)
from mxm_kernels.backends.interface import Memory
from mxm_kernels.losses import intra_modal_soft
from mxm_kernels.ops.library import within
from tests.support.watched import BACKWARD, FORWARD, watch

ENOUGH = 1 << 30  # to keep all that these tests make
FOLDS = Folds.from_ids(torch.arange(12) // 6, torch.arange(10) // 5)


@pytest.fixture
def watched(backend, monkeypatch):
    """The calls of the backend under test."""
    return watch(backend.name, monkeypatch)


def features(backend, rows=(12, 10), dtype=torch.float32):
    """x, y, which want a gradient, and the teacher's."""
    made = [normalize(torch.randn(n, 16)).to(backend.device, dtype) for n in rows * 2]
    return made[0].requires_grad_(), made[1].requires_grad_(), *made[2:]


def mfh(x, y, tx, ty, **options):
    return fused_mfh_loss(
        x, y, FOLDS.to(x.device), logit_scale=9.0, rounds=None, teacher_image_features=tx,
        teacher_text_features=ty, **options,
    )  # fmt: skip


def row_scales(x, y, tx, ty, **options):
    scales = (
        torch.full((len(x),), 9.0, device=x.device),
        torch.full((len(y),), 8.0, device=x.device),
    )
    return fused_mfh_loss(
        x, y, FOLDS.to(x.device), logit_scale=scales, rounds=None, teacher_image_features=tx,
        teacher_text_features=ty, **options,
    )  # fmt: skip


def queue(x, y, tx, ty, **options):
    return mfh(x, y, tx, ty, text_queue=ty.flip(0), **options)


def siglip(x, y, tx, ty, **options):
    return fused_siglip_loss(x, y, FOLDS.to(x.device), logit_scale=9.0, logit_bias=-5.0, **options)


def siglip_rows(x, y, tx, ty, **options):
    return torch.cat(siglip(x, y, tx, ty, reduction="none", **options)).sum()


def soft_intra_modal(x, y, tx, ty, **options):
    loss = fused_intra_modal_loss(
        x, 6, logit_scale=9.0, soft_weight=0.5, teacher_features=tx, **options
    )
    return loss + 0 * y.sum()


# Each loss, and how many calls of an operator its forward and its backward take.
LOSSES = {
    "mfh": (mfh, 1, 1),
    "row scales": (row_scales, 2, 2),
    "queue": (queue, 2, 2),
    "siglip": (siglip, 1, 0),
    "siglip, rows": (siglip_rows, 1, 1),
    "intra-modal, soft": (soft_intra_modal, 3, 4),
}
KEPT = ("mfh", "row scales", "queue", "intra-modal, soft")  # the sigmoid operators keep nothing


@pytest.fixture(params=LOSSES)
def name(request, backend, no_matrices):
    """Every loss in turn; one of them under Triton's interpreter, which is slow."""
    if backend.interpreted and request.param != "mfh":
        pytest.skip("triton-cpu: what reads the budget is the same for every backend")
    return request.param


@pytest.fixture
def no_matrices(monkeypatch):
    """The soft intra-modal loss as of a large batch, which makes no matrices."""
    monkeypatch.setattr(intra_modal_soft, "SMALL", 0)


def test_backward_has_the_budget_of_its_forward(name, backend, watched):
    loss_of, forwards, backwards = LOSSES[name]
    given = features(backend)
    with memory_budget(ENOUGH):
        loss = loss_of(*given, backend=backend.name)
    with memory_budget(ENOUGH + 1):
        loss.backward()
    assert watched.budgets == {ENOUGH}
    assert (len(watched.forward), len(watched.backward)) == (forwards, backwards)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_loss_has_the_budget_in_force(name, backend, watched):
    """It is compiled anew for a new budget, and not for one that it has met."""
    given, loss_of, losses = features(backend), LOSSES[name][0], {}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *args: loss_of(*args, backend=backend.name), fullgraph=True, backend=counter
    )
    for count, budget in ((1, ENOUGH), (2, 0), (3, ENOUGH + 1), (3, ENOUGH), (3, 0)):
        watched.clear()
        with memory_budget(budget):
            loss = compiled(*given)
        with memory_budget(ENOUGH + 2):
            loss.backward()
        assert counter.frame_count == count
        assert watched.budgets == {budget}
        assert watched.kept == watched.promised  # the fake kernel's shape is the real one's
        losses.setdefault(budget, loss.detach())
        assert torch.equal(loss, losses[budget])


@pytest.mark.usefixtures("compiler")
def test_a_budget_may_be_set_inside_of_what_is_compiled(backend, watched):
    given = features(backend)

    def block(*args):
        with memory_budget(ENOUGH):
            return mfh(*args, backend=backend.name)

    def setting(*args):
        set_memory_budget(ENOUGH + 1)
        return mfh(*args, backend=backend.name)

    with memory_budget(0):
        torch.compile(block, fullgraph=True, backend="aot_eager")(*given).backward()
        assert watched.budgets == {ENOUGH}
        watched.clear()
        torch.compile(setting, fullgraph=True, backend="aot_eager")(*given).backward()
        assert watched.budgets == {ENOUGH + 1}


# What is kept.


def step(backend, dtype=torch.float32, **options):
    """The MFH loss under a budget that keeps, and its leaves."""
    given = features(backend, dtype=dtype)
    with memory_budget(ENOUGH):
        return mfh(*given, backend=backend.name, **options), given[:2]


@pytest.fixture
def keeping(backend, watched):
    """The calls of a backend, which keeps S and T of the batch."""
    step(backend)
    assert watched.kept == watched.promised
    if not watched.keeps:
        pytest.skip(f"{backend}: it keeps nothing of this batch")
    watched.clear()
    return watched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_kept_is_what_the_backend_promises(dtype, backend, watched):
    """The fake kernel, which allocates from the promise, and the real one have to agree."""
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies no bfloat16")
    loss, _ = step(backend, dtype)
    loss.backward()
    assert watched.kept == watched.promised
    assert [m.keep for m in watched.forward] == [True]


def test_a_budget_of_zero_keeps_nothing(backend, watched):
    with memory_budget(0):
        mfh(*features(backend), backend=backend.name).backward()
    assert not watched.keeps


def test_nothing_is_kept_for_a_backward_that_does_not_come(name, backend, watched):
    x, y, *teacher = features(backend)
    with memory_budget(ENOUGH):
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                LOSSES[name][0](x, y, *teacher, backend=backend.name)
        LOSSES[name][0](x.detach(), y.detach(), *teacher, backend=backend.name)
    assert not any(memory.keep for memory in watched.forward) and not watched.keeps


def test_a_frozen_tower_keeps_for_the_other(backend, watched):
    x, y, *teacher = features(backend)
    with memory_budget(ENOUGH):
        mfh(x.detach(), y, *teacher, backend=backend.name).backward()
    assert [m.keep for m in watched.forward] == [True] and watched.kept == watched.promised


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_loss_has_the_same_bits_kept_or_not(name, dtype, backend):
    """At every budget, with a backward or without; gradients agree within their tolerance."""
    made = features(backend, dtype=dtype)
    values, gradients = [], []
    for budget in (0, 8 << 20, ENOUGH):
        leaves = [v.detach().clone().requires_grad_() for v in made[:2]]
        with memory_budget(budget):
            values.append(LOSSES[name][0](*leaves, *made[2:], backend=backend.name))
            with torch.no_grad():
                values.append(LOSSES[name][0](*leaves, *made[2:], backend=backend.name))
        gradients.append(torch.autograd.grad(values[-2], leaves))
    assert all(torch.equal(v, values[0]) for v in values)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for found in gradients[1:]:
        for dz, expected in zip(found, gradients[0], strict=True):
            bound = tolerance * float(expected.float().norm())
            assert float((dz.float() - expected.float()).norm()) <= bound


@pytest.mark.usefixtures("keeping")
def test_backward_twice(backend):
    """The first one writes over nothing that the second reads."""
    loss, leaves = step(backend)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, retain_graph=True)
    doubled = torch.autograd.grad(2 * loss, leaves)
    for dz, same, twice in zip(first, again, doubled, strict=True):
        assert torch.equal(dz, same)
        torch.testing.assert_close(twice, 2 * dz)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant, name, backend, watched):
    """Without reentrance it is an error to read what is saved twice."""
    x, y, *teacher = features(backend)
    run = lambda *args: LOSSES[name][0](*args, backend=backend.name)  # noqa: E731
    with memory_budget(ENOUGH):
        expected = torch.autograd.grad(run(x, y, *teacher), (x, y))
        watched.clear()
        checkpoint(run, x, y, *teacher, use_reentrant=reentrant).backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(y.grad, expected[1])
    assert watched.forward[0].keep is (not reentrant and name in KEPT)


def test_saved_tensor_hooks_move_what_is_kept(backend, keeping):
    """As save_on_cpu does: once packed, the memory of S and T is free."""
    torch.manual_seed(1)
    expected = torch.autograd.grad(*step(backend))
    keeping.clear()
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tuple(tensor.shape))
        return tensor.to("cpu", copy=True)

    def unpack(tensor):
        unpacked.append(tuple(tensor.shape))
        return tensor.to(backend.device)

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss, leaves = step(backend)
    (storage,), (shape,) = keeping.storages, keeping.kept
    assert storage.expired()
    for dz, same in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert torch.equal(dz, same)
    assert packed.count(shape) == unpacked.count(shape) == 1


def test_what_is_kept_is_free_with_the_graph(backend, keeping):
    loss, _ = step(backend)
    (storage,) = keeping.storages
    assert not storage.expired()
    loss.backward()  # frees what is saved, while the loss itself lives on
    assert storage.expired()
    loss, _ = step(backend)
    storage = keeping.storages[-1]
    assert not storage.expired()
    del loss
    assert storage.expired()


# Out of memory.


@pytest.mark.parametrize("method", [*FORWARD, *BACKWARD])
def test_running_out_of_memory_names_the_budget_and_what_lowers_it(method, backend, monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fail(*args):
        raise full

    monkeypatch.setattr(backends.load(backend.name), method, fail)
    loss_of = siglip if method == "sigmoid_loss" else siglip_rows if "sigmoid" in method else mfh
    with pytest.raises(torch.OutOfMemoryError) as caught, memory_budget(123 << 20):
        loss_of(*features(backend), backend=backend.name).backward()
    assert caught.value.__cause__ is full
    message = str(caught.value)
    assert message.startswith(str(full)), "what programs search for"
    assert "128,974,848 bytes" in message
    assert f"mxm_kernels.set_memory_budget(nbytes, '{backend.device.type}')" in message


def test_on_a_gpu_it_names_the_budget_of_gpus():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, device="cuda")
    found = pytest.raises(torch.OutOfMemoryError, match=r"set_memory_budget\(nbytes, 'cuda'\)")
    with found, within(Memory(5), x):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_other_errors_are_as_they_were(backend, monkeypatch):
    def fail(*args):
        raise ValueError("the least is 4096")

    monkeypatch.setattr(backends.load(backend.name), "forward", fail)
    with pytest.raises(ValueError, match="^the least is 4096$"):
        mfh(*features(backend), backend=backend.name)


@pytest.mark.parametrize("name", ["blocked"])
def test_the_default_budget_holds_the_workspace_with_rules(name):
    """Of the largest tiles, whose sides are not bounded by the width of the features."""
    x, y = (normalize(torch.randn(rows, 8), dim=1).requires_grad_() for rows in (1500, 1400))
    own = {"logit_scale": 9.0, "rounds": None, "backend": name}
    offsets = {"text_offsets": torch.zeros(1400)}
    told, plain = (fused_mfh_loss(x, y, (15, 14), **own, **o) for o in (offsets, {}))
    torch.testing.assert_close(told, plain)
    told.backward()
