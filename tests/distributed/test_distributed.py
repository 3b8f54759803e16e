"""The contract: W ranks give the loss and the averaged gradients of one process."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from bench.models.traffic import bytes_sent
from mxm_kernels import (
    Diagnostics,
    Folds,
    fused_info_nce_loss,
    fused_intra_modal_loss,
    fused_mfh_loss,
)
from tests.support.distributed import (
    FILTERED,
    LOSSES,
    Towers,
    counted_step,
    inputs,
    layout,
    loss,
    one_process,
    straddling_pairs,
    wrapped_step,
)
from tests.support.processes import ProcessExitError, results, run_ranks

KINDS = ["even", "straddling", "no pairs", "no images", "no texts"]
FLOAT32, FLOAT64 = 1e-6, 1e-12


def check(world, kind, wrapper="ddp", dtype=torch.float32, names=tuple(LOSSES), **more):
    tolerance = FLOAT32 if dtype == torch.float32 else FLOAT64
    every = results(world, wrapped_step, names, kind, wrapper, dtype, more)
    for name in names:
        value, grads = one_process(name, layout(world, kind), dtype, **more)
        size = torch.cat([g.flatten() for g in grads.values()]).norm()
        for rank, ours in enumerate(every):
            where = f"{name}, rank {rank}"
            error = float((ours[name][0] - value).abs())
            assert error <= tolerance * max(1.0, float(value.abs())), f"{where}: loss {error}"
            for parameter, grad in grads.items():
                error = float((ours[name][1][parameter] - grad).norm() / size)
                assert error <= tolerance, f"{where}: {parameter} {error}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_gradients_are_those_of_one_process(world, kind):
    check(world, kind)


@pytest.mark.parametrize("kind", ["straddling", "no images"])
def test_exactly_so_in_float64(kind):
    check(3, kind, dtype=torch.float64, backend="blocked")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_around_a_ring(world, kind):
    check(world, kind, gather="ring", names=[name for name in LOSSES if name not in FILTERED])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_fsdp(world):
    check(world, "straddling", wrapper="fsdp")


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize(
    ("name", "teacher_width"), [("mfh", 8), ("info_nce", 0), ("float8 teacher", 8)]
)
def test_bytes_sent_are_those_documented(name, teacher_width, gather):
    plan = layout(3)
    for rank, sent in enumerate(results(3, counted_step, name, gather)):
        expected = bytes_sent(
            plan.images,
            plan.texts,
            rank,
            width=8,
            teacher_width=teacher_width,
            float8=name.startswith("float8"),
            pairs=straddling_pairs(plan, rank),
            gather=gather,
        )
        assert sent == sum(expected.values()), expected


def rows_of_ranks(rank, world):
    group, plan = dist.group.WORLD, layout(world)
    model = Towers()
    rows, cols = plan.rows(rank)
    data = inputs(plan, torch.float32)
    features = model(data["image"][rows], data["text"][cols])
    ours = loss("mfh", plan, rank, features, torch.float32, group, reduction="none")
    whole = model(data["image"], data["text"])
    expected = loss("mfh", plan.whole, 0, whole, torch.float32, None, reduction="none")
    torch.testing.assert_close(ours[0], expected[0][rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], expected[1][cols], rtol=1e-5, atol=1e-6)
    seen, wanted = Diagnostics(), Diagnostics()
    loss("mfh", plan, rank, features, torch.float32, group, diagnostics=seen)
    loss("mfh", plan.whole, 0, whole, torch.float32, None, diagnostics=wanted)
    assert seen.numbers() == pytest.approx(wanted.numbers(), rel=1e-5)
    assert len(seen.numbers()) == 7


def test_rows_and_diagnostics():
    results(3, rows_of_ranks)


def a_rank_without_rows(rank, world):
    g = torch.Generator().manual_seed(2)
    x, y, tx, ty = (normalize(torch.randn(6, 8, generator=g)) for _ in range(4))
    ids = [0, 1, 1, 2, 3, 3]
    own, seen, wanted = slice(0 if rank else 6), Diagnostics(), Diagnostics()

    def run(rows, **options):
        return fused_mfh_loss(
            x[rows], y[rows], (ids[rows], ids[rows]), logit_scale=9.0, rounds=None,
            teacher_image_features=tx[rows], teacher_text_features=ty[rows], **options,
        )  # fmt: skip

    ours = run(own, diagnostics=seen, process_group=dist.group.WORLD)
    torch.testing.assert_close(ours, run(slice(6), diagnostics=wanted))
    assert seen.numbers() == pytest.approx(wanted.numbers(), rel=1e-5)
    assert len(seen.numbers()) == 7


def test_diagnostics_of_a_rank_without_rows():
    results(2, a_rank_without_rows)


def uniform_folds(rank, world):
    g = torch.Generator().manual_seed(2)
    x = normalize(torch.randn(6 * world, 8, generator=g), dim=1)
    y = normalize(torch.randn(4 * world, 8, generator=g), dim=1)
    own = x[6 * rank : 6 * rank + 6], y[4 * rank : 4 * rank + 4]
    options = {"logit_scale": 9.0, "rounds": None}
    ours = fused_mfh_loss(*own, (3, 2), process_group=dist.group.WORLD, **options)
    torch.testing.assert_close(ours, fused_mfh_loss(x, y, (3, 2), **options))
    pairs = fused_info_nce_loss(own[1], own[1], logit_scale=9.0, process_group=dist.group.WORLD)
    torch.testing.assert_close(pairs, fused_info_nce_loss(y, y, logit_scale=9.0))


def test_uniform_folds_number_the_instances_of_each_rank():
    results(3, uniform_folds)


def rows_alone_in_their_instance(rank, world):
    g = torch.Generator().manual_seed(3)
    x, a = (normalize(torch.randn(3 * world, 8, generator=g), dim=1) for _ in range(2))
    own, options = slice(3 * rank, 3 * rank + 3), {"logit_scale": 9.0, "soft_weight": 1.0}
    expected = fused_intra_modal_loss(x, 1, teacher_features=a, **options)
    options |= {"teacher_features": a[own], "process_group": dist.group.WORLD}
    for gather in ("all", "ring"):
        ours = fused_intra_modal_loss(x[own], 1, gather=gather, **options)
        torch.testing.assert_close(ours, expected)
    try:
        fused_intra_modal_loss(x[own], 1, **(options | {"soft_weight": 0.5}))
    except ValueError as error:
        return str(error)


def test_the_soft_loss_of_one_modality_needs_no_pair():
    message = "folds: expected an instance with at least two rows, got one row in every instance"
    assert results(3, rows_alone_in_their_instance) == [message] * 3


def drawn_without_generator(rank, world):
    torch.manual_seed(100 + rank)  # as every rank has for its dropout
    plan = layout(world)
    rows, cols = plan.rows(rank)
    data = inputs(plan, torch.float32)
    ids = torch.tensor(plan.image_ids)[rows], torch.tensor(plan.text_ids)[cols]
    features = Towers()(data["image"][rows], data["text"][cols])
    values = [
        fused_mfh_loss(
            *features[:2], ids, logit_scale=9.0, rounds=1, process_group=dist.group.WORLD
        )
        for _ in range(3)
    ]
    return torch.stack(values).detach()


def test_without_a_generator_rank_0_draws():
    first, *others = results(3, drawn_without_generator)
    assert all(torch.equal(first, other) for other in others)
    assert len(set(first.tolist())) == 3  # a new draw every time


def mismatched(rank, world, change):
    x = normalize(torch.ones(4, 8), dim=1)
    call = {"image_features": x, "text_features": x, "folds": (2, 2), "logit_scale": 5.0}
    call |= {"process_group": dist.group.WORLD}
    if rank == world - 1:
        call |= change()
    fused_mfh_loss(**call)


def narrow():
    x = normalize(torch.ones(4, 7), dim=1)
    return {"image_features": x, "text_features": x}


def half():
    return {"image_features": torch.ones(4, 8).half(), "text_features": torch.ones(4, 8).half()}


def teacher():
    return {"teacher_image_features": torch.ones(4, 8), "teacher_text_features": torch.ones(4, 8)}


def smoothing():
    return {"label_smoothing": 0.1}


def rounds():
    return {"rounds": 3}


def number():
    return {"logit_scale": 6.0}


def trained():
    return {"image_features": torch.ones(4, 8).requires_grad_()}


def seeded():
    return {"generator": torch.Generator().manual_seed(1)}


def other_folds():
    return {"folds": (1, 1)}


def own_error():
    return {"text_features": torch.ones(4, 8).long()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrow, "agree on D, got 8 on rank 0 and 7 on rank 2"),
        (half, "agree on dtype, got torch.float32 on rank 0 and torch.float16"),
        (teacher, "agree on soft_weight|agree on teacher_image_features"),
        (smoothing, "agree on label_smoothing, got 0.0 on rank 0 and 0.1 on rank 2"),
        (rounds, "agree on rounds, got 10 on rank 0 and 3 on rank 2"),
        (number, r"agree on logit_scale, got 5.0 on rank 0 and 6.0"),
        (trained, "agree on which arguments require a gradient"),
        (seeded, "agree on generator, got None on rank 0"),
        (other_folds, r"agree on folds, got Folds.uniform\(views=2.*views=1"),
    ],
)
def test_a_mismatch_is_an_error_on_every_rank(change, message):
    for error in run_ranks(3, mismatched, change):
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match=message):
            raise error


def test_an_error_on_one_rank_is_an_error_on_every_rank():
    *others, own = run_ranks(3, mismatched, own_error)
    assert isinstance(own, TypeError)
    for error in others:
        assert isinstance(error, RuntimeError)
        assert "rank 2 has an error: TypeError: text_features must be float32" in str(error)


def nothing_to_compare(rank, world, kind):
    x = torch.ones(4, 8)
    empty = x[:0]
    call = {"logit_scale": 5.0, "process_group": dist.group.WORLD}
    if kind == "images":
        fused_mfh_loss(empty, x, ([], [1] * 4), **call)
    fused_mfh_loss(x, x, ([rank] * 4, [rank + world] * 4), **call)


@pytest.mark.parametrize(
    ("kind", "message"), [("images", "at least one row on some"), ("pairs", "one positive pair")]
)
def test_an_empty_batch_is_an_error_on_every_rank(kind, message):
    for error in run_ranks(2, nothing_to_compare, kind):
        assert isinstance(error, ValueError)
        assert message in str(error)


def dying(rank, world, when):
    x = torch.ones(4, 8).requires_grad_()
    value = fused_mfh_loss(x, x, (2, 2), logit_scale=5.0, process_group=dist.group.WORLD)
    if rank == 1 and when == "backward":
        os._exit(3)
    value.backward()
    if rank == 1:
        os._exit(3)
    fused_mfh_loss(x, x, (2, 2), logit_scale=5.0, process_group=dist.group.WORLD)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_rank_that_dies_is_an_error_in_time(when):
    start = time.monotonic()
    alive, dead, other = run_ranks(3, dying, when, timeout=20)
    assert time.monotonic() - start < 40
    assert isinstance(dead, ProcessExitError)
    assert "exit code 3" in str(dead)
    for error in (alive, other):
        assert isinstance(error, RuntimeError)
        assert not isinstance(error, ProcessExitError)


def test_process_group_is_checked():
    x = torch.ones(4, 8)
    with pytest.raises(TypeError, match="process_group must be a torch.distributed.ProcessGroup"):
        fused_mfh_loss(x, x, (2, 2), logit_scale=5.0, process_group="gloo")


def second_derivative(rank, world):
    x = torch.ones(4, 8).requires_grad_()
    value = fused_mfh_loss(x, x, (2, 2), logit_scale=5.0, process_group=dist.group.WORLD)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    grad.sum().backward()


def test_a_second_derivative_is_an_error():
    for error in run_ranks(2, second_derivative):
        assert isinstance(error, RuntimeError)


def test_folds_keep_their_ids():
    folds = Folds.from_ids([5, 3], [3]).to("cpu")
    images, texts = folds.ids(2, 1, torch.device("cpu"))
    assert (images.tolist(), texts.tolist()) == ([5, 3], [3])
    uniform = Folds.uniform(2, 1).ids(4, 2, torch.device("cpu"))
    assert [ids.tolist() for ids in uniform] == [[0, 0, 1, 1], [0, 1]]
