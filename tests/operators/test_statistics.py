"""The operator's contract with PyTorch: registration, compilation, modes, memory, determinism."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import Folds, MFHLoss, draw_selection, fused_mfh_loss
from mxm_kernels.backends import native
from mxm_kernels.operators.statistics import statistics
from tests.support.cases import NAMED_CASES, Case
from tests.support.memory import peak_bytes, saved_bytes

RAGGED = NAMED_CASES["ragged and shuffled"]


def batch(backend, dtype=torch.float32, case=RAGGED):
    x, y, tx, ty = (f.to(backend.device) for f in case.features(dtype))
    tables = Folds.from_ids(*case.ids).to(backend.device).tables(len(x), len(y), x.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    s = torch.tensor(20.0, device=backend.device, dtype=wide)
    return x.requires_grad_(), y.requires_grad_(), (tx, ty), s.requires_grad_(), tables


def loss_of(backend, x, y, teacher, s, **options):
    options = {"rounds": None} | options
    return fused_mfh_loss(
        x, y, RAGGED.ids, logit_scale=s, teacher_image_features=teacher[0],
        teacher_text_features=teacher[1], backend=backend.name, **options,
    )  # fmt: skip


@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(with_teacher, dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    x, y, (tx, ty), s, t = batch(backend, dtype)
    teacher = (tx, ty) if with_teacher else (None, None)
    arguments = (
        x, y, *teacher, s, s.detach() if with_teacher else None,
        t.image_groups, t.text_groups, t.image_offsets, t.pair_images, t.pair_texts, backend.name,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.mxm_kernels.statistics.default, arguments)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_opcheck_with_diagnostics(with_teacher, backend):
    x, y, (tx, ty), s, t = batch(backend)
    teacher = (tx, ty, s, s.detach()) if with_teacher else (None, None, s, None)
    arguments = (
        x, y, *teacher, t.image_groups, t.text_groups, t.image_offsets, t.pair_images,
        t.pair_texts, backend.name, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.mxm_kernels.statistics.default, arguments)


DIAGNOSED = {
    "ragged": NAMED_CASES["ragged and shuffled"],
    "several tiles and tails": NAMED_CASES["several tiles and tails"],
    "no negatives": NAMED_CASES["a single instance"],
    "hot": replace(NAMED_CASES["several tiles and tails"], temperature=0.005),
    "more than a chunk": Case(tuple(i % 90 for i in range(130)), tuple(j // 6 for j in range(540))),
}


@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", DIAGNOSED.values(), ids=DIAGNOSED)
def test_diagnostics_agree_with_dense_float64(case, dtype, with_teacher, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    if case is DIAGNOSED["more than a chunk"] and _interpreted(backend):
        pytest.skip("triton-cpu: 20 seconds, and it has tiles and programs in the other cases")
    x, y, teacher, s, tables = batch(backend, dtype, case)
    s = torch.full_like(s, 1 / case.temperature)
    t = s * 0.7
    got = statistics(
        x, y, *((teacher, s, t) if with_teacher else (None, s, None)), tables, backend.name, True
    )
    x, y, tx, ty, s, t = (v.detach().cpu().double() for v in (x, y, *teacher, s, t))
    S, T = s * x @ y.T, t * tx @ ty.T
    ids = case.ids
    S = S.masked_fill(ids[0][:, None] == ids[1], -torch.inf)
    unit = 4 * torch.finfo(got.n_rows.dtype).eps  # of logits as large as the scales
    for m, dim in ((got.m_rows, 1), (got.m_cols, 0)):
        torch.testing.assert_close(m.cpu().double(), S.amax(dim), rtol=0, atol=unit * s.item())
    for h, dim in ((got.h_rows, 1), (got.h_cols, 0)):
        if not with_teacher:
            assert h.numel() == 0
            continue
        entropy = torch.special.entr(T.softmax(dim)).sum(dim)
        torch.testing.assert_close(h.cpu().double(), entropy, rtol=0, atol=2 * unit * t.item())
        assert h.min() >= 0
    assert not any(d.requires_grad for d in got[7:11])


@pytest.mark.parametrize("with_teacher", [True, False])
def test_rows_and_columns_far_below_the_greatest_logit(with_teacher, backend):
    """300 nats below: against a reference that they shared with it, all of their terms vanish."""
    count, s = 36, torch.tensor(150.0, device=backend.device)
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.rand(count, 8, generator=generator) / 50 for _ in range(2))
    level = torch.where(torch.arange(count) % 3 == 0, -1.0, 1.0)
    x[:, 0], y[:, 0], x[:, 1], y[:, 1] = level, 1.0, 1.0, level.flip(0)
    x, y = x.to(backend.device).requires_grad_(), y.to(backend.device).requires_grad_()
    ids = torch.arange(count) // 2
    tables = Folds.from_ids(ids, ids).to(backend.device).tables(count, count, x.device)
    teacher = (x.detach().roll(1, 0), y.detach()) if with_teacher else None
    got = statistics(x, y, teacher, s, s / 2 if with_teacher else None, tables, backend.name)

    wide = [v.detach().cpu().double().requires_grad_() for v in (x, y)]
    S = 150 * wide[0] @ wide[1].T
    negatives = S.masked_fill(ids[:, None] == ids, -torch.inf)
    expected = {"n_rows": negatives.logsumexp(1), "n_cols": negatives.logsumexp(0)}
    if teacher is not None:
        T = 75 * teacher[0].cpu().double() @ teacher[1].cpu().double().T
        expected |= {"u_rows": (T.softmax(1) * S).sum(1), "u_cols": (T.softmax(0) * S).sum(0)}
    assert expected["n_rows"].min() < expected["n_rows"].max() - 290
    for name, value in expected.items():
        found = getattr(got, name).detach().cpu().double()
        torch.testing.assert_close(found, value.detach(), rtol=1e-5, atol=1e-4)
    # A row's gradients go into its own dx, where those of the others do not hide them.
    weights = torch.rand(len(expected), count, generator=generator)
    sum(
        (getattr(got, k) * w.to(x.device)).sum() for k, w in zip(expected, weights, strict=True)
    ).backward()
    sum((v * w).sum() for v, w in zip(expected.values(), weights, strict=True)).backward()
    for feature, of in zip((x, y), wide, strict=True):
        error = (feature.grad.cpu().double() - of.grad).norm(dim=1) / of.grad.norm(dim=1)
        assert error.max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_diagnostics_change_no_bit_and_cost_no_product(with_teacher, dtype, backend):
    x, y, teacher, s, tables = batch(backend, dtype, NAMED_CASES["several tiles and tails"])
    options = (teacher, s, s.detach()) if with_teacher else (None, s, None)
    results, products = [], []
    for diagnostics in (False, True):
        products.append(
            _matrix_products(
                lambda: results.append(
                    statistics(x, y, *options, tables, backend.name, diagnostics)  # noqa: B023
                )
            )
        )
    without, with_them = results
    assert all(torch.equal(a, b) for a, b in zip(without[:7], with_them[:7], strict=True))
    assert all(d.numel() == 0 for d in without[7:11])
    assert products[0] == products[1]


def test_a_feature_that_is_not_finite_poisons_the_diagnostics(backend):
    x, y, teacher, s, tables = batch(backend)
    with torch.no_grad():
        x[1, 1] = -torch.inf
    got = statistics(x, y, teacher, s, s.detach(), tables, backend.name, True)
    assert all(d.isnan().all() for d in got[7:11])


@pytest.mark.usefixtures("compiler")
def test_compiled_with_diagnostics(backend):
    x, y, teacher, s, tables = batch(backend)

    def run(x, y, s):
        got = statistics(x, y, teacher, s, s.detach(), tables, backend.name, True)
        return got.n_rows.sum() + got.u_cols.sum(), got.m_rows, got.m_cols, got.h_rows, got.h_cols

    for eager, fused in zip(run(x, y, s), torch.compile(run, fullgraph=True)(x, y, s), strict=True):
        torch.testing.assert_close(fused, eager)


@pytest.mark.parametrize("needs", [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_opcheck_of_the_backward(needs, backend):
    x, y, (tx, ty), s, t = batch(backend)
    x, y, s = x.detach(), y.detach(), s.detach()
    problem = (x, y, tx, ty, s, s.clone(), t.image_groups, t.text_groups, t.image_offsets,
               t.pair_images, t.pair_texts)  # fmt: skip
    outputs = torch.ops.mxm_kernels.statistics(*problem, backend.name)
    upstream = [torch.randn_like(output) for output in outputs[:5]]
    torch.library.opcheck(
        torch.ops.mxm_kernels.statistics_backward.default,
        (*problem, *outputs[:7], outputs[-1], *upstream, [bool(n) for n in needs], backend.name),
    )


def test_gradcheck(backend):
    if torch.float64 not in backend.dtypes:
        pytest.skip(f"{backend} takes no float64")
    x, y, teacher, s, tables = batch(backend, torch.float64)

    def differentiable(x, y, s):
        return statistics(x, y, teacher, s, s.detach() * 0 + 17.0, tables, backend.name)[:5]

    torch.autograd.gradcheck(differentiable, (x, y, s))


@pytest.fixture
def compiler():
    """A compiler that has not met our functions: PyTorch gives up after 8 variants of one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rounds", [None, 3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_whole(rounds, reduction, backend):
    x, y, teacher, s, _ = batch(backend)
    folds = Folds.from_ids(*RAGGED.ids).to(backend.device)
    module = MFHLoss(rounds=rounds, reduction=reduction, backend=backend.name)
    options = {"logit_scale": s, "teacher_image_features": teacher[0],
               "teacher_text_features": teacher[1]}  # fmt: skip
    if rounds is not None:
        options["selection"] = draw_selection(folds, x, y, rounds=rounds)
    compiled = torch.compile(module, fullgraph=True)
    results = []
    for call in (module, compiled):
        for leaf in (x, y, s):
            leaf.grad = None
        value = call(x, y, folds, **options)
        value = torch.cat(value) if reduction == "none" else value
        value.sum().backward()
        results.append([value.detach(), x.grad, y.grad, s.grad])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager)


@pytest.mark.usefixtures("compiler")
def test_compiled_with_uniform_folds_and_a_draw(backend):
    x, y = (normalize(torch.randn(n, 8)).to(backend.device) for n in (12, 10))
    compiled = torch.compile(fused_mfh_loss, fullgraph=True)
    options = {"logit_scale": 20.0, "backend": backend.name}
    drawn = compiled(x, y, (6, 5), rounds=50, **options)
    exact = compiled(x, y, (6, 5), rounds=None, **options)
    eager = fused_mfh_loss(x, y, (6, 5), rounds=None, **options)
    torch.testing.assert_close(exact, eager)
    torch.testing.assert_close(drawn, eager, rtol=0.2, atol=0)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rounds", [None, 4])
def test_compiled_ragged_batches_of_changing_sizes(rounds, backend):
    """No recompilation per batch: the third size of everything is a variant already known."""
    compiled = torch.compile(MFHLoss(rounds=rounds, backend=backend.name), fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        image_ids = torch.randint(0, 6, (11 + 3 * step,), generator=generator)
        text_ids = torch.randint(0, 6, (9 + 2 * step,), generator=generator)
        x, y = (normalize(torch.randn(len(i), 8)).to(backend.device) for i in (image_ids, text_ids))
        folds = Folds.from_ids(image_ids, text_ids).to(backend.device)
        # As a tensor: a number is a constant of the program, and a new one a new program.
        scale = torch.tensor(20.0 + step, device=backend.device)
        loss = compiled(x, y, folds, logit_scale=scale)
        eager = fused_mfh_loss(x, y, folds, logit_scale=scale, rounds=None, backend=backend.name)
        tolerance = {"rtol": 1e-5, "atol": 0} if rounds is None else {"rtol": 0.3, "atol": 0}
        torch.testing.assert_close(loss, eager, **tolerance)


@pytest.mark.usefixtures("compiler")
def test_a_wrong_selection_inside_a_compiled_region_gives_nan(backend):
    x, y, _, s, _ = batch(backend)
    folds = Folds.from_ids(*RAGGED.ids).to(backend.device)
    to_text, to_image = draw_selection(folds, x, y, rounds=2)
    to_text[0, 0] = -1
    compiled = torch.compile(MFHLoss(backend=backend.name), fullgraph=True)
    assert compiled(x, y, folds, logit_scale=s, selection=(to_text, to_image)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_features_and_nothing_else(dtype, backend):
    x, y, teacher, s, _ = batch(backend)
    with torch.autocast(backend.device.type, dtype):
        loss = loss_of(backend, x, y, teacher, s)
    loss.backward()
    assert loss.dtype == x.grad.dtype == torch.float32
    low = [f.detach().to(dtype).requires_grad_() for f in (x, y)]
    outside = loss_of(backend, *low, [t.to(dtype) for t in teacher], s.detach())
    outside.backward()
    assert torch.equal(loss, outside)
    assert torch.equal(x.grad, low[0].grad.float())


def test_autocast_joins_towers_of_different_dtypes(backend):
    x, y, teacher, s, _ = batch(backend)
    with torch.autocast(backend.device.type, torch.bfloat16):
        mixed = loss_of(backend, x.bfloat16(), y, teacher, s)
        same = loss_of(backend, x, y, teacher, s)
    assert torch.equal(mixed, same)


def test_no_grad_and_inference_mode(backend):
    x, y, teacher, s, _ = batch(backend)
    expected = loss_of(backend, x, y, teacher, s)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            loss = loss_of(backend, x, y, teacher, s)
        assert not loss.requires_grad
        assert torch.equal(loss, expected)


def test_inference_first_and_training_after_with_uniform_folds(backend):
    """The tables that inference left behind serve a training step."""
    x, y = (normalize(torch.randn(n, 8)).to(backend.device) for n in (21, 14))
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    with torch.inference_mode():
        expected = fused_mfh_loss(x, y, (3, 2), **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fused_mfh_loss(mode.from_tensor(x), mode.from_tensor(y), (3, 2), **options)
    loss = fused_mfh_loss(x.requires_grad_(), y, (3, 2), **options)
    loss.backward()
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("trained", ["image", "text", "scale"])
def test_a_frozen_tower_gets_no_gradient_and_costs_no_product(trained, backend):
    x, y, teacher, s, _ = batch(backend)
    loss_of(backend, x, y, teacher, s).backward()
    leaves = {"image": x.detach(), "text": y.detach(), "scale": s.detach()}
    leaf = leaves[trained].requires_grad_()
    loss = loss_of(backend, leaves["image"], leaves["text"], teacher, leaves["scale"])
    products = _matrix_products(loss.backward)
    torch.testing.assert_close(leaf.grad, {"image": x, "text": y, "scale": s}[trained].grad)
    both = _matrix_products(loss_of(backend, x, y, teacher, s).backward)
    assert both - products == (2 if trained == "scale" else 1)


def _matrix_products(run) -> int:
    with torch.profiler.profile() as profile:
        run()
    return sum(e.count for e in profile.key_averages() if e.key in ("aten::mm", "aten::addmm_"))


def test_backward_twice_through_a_retained_graph(backend):
    x, y, teacher, s, _ = batch(backend)
    loss = loss_of(backend, x, y, teacher, s)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * first)


def test_second_derivatives_are_refused(backend):
    x, y, teacher, s, _ = batch(backend)
    (grad,) = torch.autograd.grad(loss_of(backend, x, y, teacher, s), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(dtype, backend):
    torch.use_deterministic_algorithms(False)
    runs = []
    for _ in range(2):
        x, y, teacher, s, _ = batch(backend, dtype, NAMED_CASES["several tiles and tails"])
        loss = fused_mfh_loss(
            x, y, NAMED_CASES["several tiles and tails"].ids, logit_scale=s,
            teacher_image_features=teacher[0], teacher_text_features=teacher[1],
            generator=torch.Generator().manual_seed(2), backend=backend.name,
        )  # fmt: skip
        loss.backward()
        runs.append([loss.detach(), x.grad, y.grad, s.grad])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def _interpreted(backend) -> bool:
    return backend.name == "triton" and backend.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autograd_keeps_numbers_per_row_and_per_pair_only(dtype, backend, monkeypatch):
    """Beside its inputs: O(M + N + P) numbers, at two sizes; never a similarity matrix.

    What native keeps of a small batch is another test's (test_mixed); here it keeps nothing.
    """
    monkeypatch.setattr(native, "KEPT", 0)
    for instances in (4, 8) if _interpreted(backend) else (40, 160):
        M, N, P = instances * 6, instances * 5, instances * 30
        x, y, tx, ty = (
            normalize(torch.randn(n, 32)).to(backend.device, dtype) for n in (M, N, M, N)
        )
        x, y = x.requires_grad_(), y.requires_grad_()
        folds = Folds.uniform(6, 5)
        tables = folds.tables(M, N, x.device)
        known = [x, y, tx, ty, *(v for v in vars(tables).values() if torch.is_tensor(v))]
        saved = saved_bytes(
            lambda: fused_mfh_loss(
                x, y, folds, logit_scale=20.0, teacher_image_features=tx,  # noqa: B023
                teacher_text_features=ty, backend=backend.name,  # noqa: B023
            ),
            known,
        )  # fmt: skip
        # float32: at most 8 numbers a row and 12 a pair (both directions of the algebra).
        assert saved <= 4 * (8 * (M + N) + 12 * P) + 1024
        if not _interpreted(backend):
            assert saved < 4 * M * N / 4


WORKSPACE = {"blocked": 24 << 20, "native": 48 << 20, "triton": 256 << 20}


@pytest.mark.parametrize("with_teacher", [True, False])
def test_peak_memory_is_features_rows_and_a_workspace(with_teacher, backend):
    """O((M + N) D) plus a constant: four times the rows, less than five times the rest."""
    if _interpreted(backend):
        pytest.skip("triton-cpu: interpreted kernels allocate in NumPy, unseen by PyTorch")
    D, peaks = 16, []
    for rows in (3000, 12000):
        x, y, tx, ty = (normalize(torch.randn(rows, D)).to(backend.device) for _ in range(4))
        x, y = x.requires_grad_(), y.requires_grad_()
        teacher = {"teacher_image_features": tx, "teacher_text_features": ty}

        def step():
            fused_mfh_loss(
                x, y, (3, 3), logit_scale=20.0, backend=backend.name,  # noqa: B023
                **(teacher if with_teacher else {}),  # noqa: B023
            ).backward()  # fmt: skip

        step()  # tables of the folds and, on a GPU, the BLAS workspace, stay allocated
        x.grad = y.grad = None
        peaks.append(peak_bytes(step, backend.device))
        pairs, dense = 3 * rows, 4 * rows * rows
        linear = 4 * (2 * rows * 3 * D + 40 * 2 * rows + 200 * pairs)
        assert peaks[-1] <= WORKSPACE[backend.name] + linear
        assert peaks[-1] < dense or rows == 3000


cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _training_step(x, y, tx, ty, s, folds, **options):
    return fused_mfh_loss(
        x, y, folds, logit_scale=s, teacher_image_features=tx, teacher_text_features=ty, **options
    )


@cuda_only
@pytest.mark.parametrize("teacher_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_a_step_never_waits_for_the_gpu(teacher_dtype):
    x, y, tx, ty = (f.cuda() for f in RAGGED.features(torch.bfloat16))
    x, y = x.requires_grad_(), y.requires_grad_()
    s = torch.tensor(20.0, device="cuda", requires_grad=True)
    folds = Folds.from_ids(*RAGGED.ids).to("cuda")
    options = {"teacher_dtype": teacher_dtype}
    _training_step(x, y, tx, ty, s, folds, **options).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _training_step(x, y, tx, ty, s, folds, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda_only
@pytest.mark.parametrize("teacher_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_captured_in_a_cuda_graph(teacher_dtype):
    x, y, tx, ty = (f.cuda() for f in RAGGED.features(torch.bfloat16))
    s = torch.tensor(20.0, device="cuda")
    folds = Folds.from_ids(*RAGGED.ids).to("cuda")

    def step():
        return fused_mfh_loss(
            x, y, folds, logit_scale=s, rounds=None, teacher_image_features=tx,
            teacher_text_features=ty, teacher_dtype=teacher_dtype,
        )  # fmt: skip

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(x.roll(1, 0))
    graph.replay()
    assert torch.equal(captured, step())
