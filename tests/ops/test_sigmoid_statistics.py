"""The sigmoid operator: its numbers against dense float64, and its contract with PyTorch."""

import pytest
import torch
from torch.nn.functional import softplus

from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics
from reference.siglip import siglip_loss
from tests.support.cases import NAMED_CASES
from tests.support.compare import assert_as_good
from tests.support.products import matrix_products
from tests.support.rules import sigmoid_rules
from tests.support.sigmoid import (
    CASES,
    CHUNKS,
    NAMES,
    SCALARS,
    TILES,
    batch,
    dense,
    differentiated,
    magnitudes,
    upstream_of,
)

# In 16 bits the gradients of the loss cancel there: tests/losses/test_family.py has that case.
CASES_OF_STATISTICS = CASES | {"one dimension": NAMED_CASES["one dimension"]}


def arguments_of(leaves, tables, backend, told=False):
    rules = sigmoid_rules(*leaves[:2], given=told)
    return (*leaves, *tables.pair_tables(), *rules, backend.name, 1 << 26)


@pytest.mark.parametrize("scalars", SCALARS.values(), ids=SCALARS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("case", CASES_OF_STATISTICS.values(), ids=CASES_OF_STATISTICS)
def test_agrees_with_dense_float64(case, dtype, scalars, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    if case is CHUNKS and backend.interpreted:
        pytest.skip("triton-cpu: 20 seconds, and it has tiles and programs in the other cases")
    leaves, tables = batch(backend, dtype, case, scalars)
    got = differentiated(lambda v: sigmoid_statistics(*v, tables, backend.name), leaves)
    tables = tables.map(torch.Tensor.cpu)
    exact = [v.detach().cpu().double() for v in leaves]
    expected = differentiated(lambda v: dense(v, tables), exact)
    narrow = torch.promote_types(dtype, torch.float32)
    naive = differentiated(lambda v: dense(v, tables), [v.to(narrow) for v in exact])
    sizes = magnitudes(exact, tables)
    for name, *values, size in zip(NAMES, got, expected, naive, sizes, strict=True):
        # The statistics and the scalars' gradients are float32 for 16-bit features too.
        own = narrow if name not in ("dx", "dy", "dscale", "dbias") else dtype
        assert_as_good(name, *values, own, magnitude=size)


@pytest.mark.parametrize("s", [1e-20, 1e-30])
def test_a_tiny_scale_has_its_gradient(s, backend):
    """The square of the scale is below float32's numbers."""
    leaves, tables = batch(backend, scalars=(s, -1.0))
    got = differentiated(lambda v: sigmoid_statistics(*v, tables, backend.name), leaves)
    tables = tables.map(torch.Tensor.cpu)
    exact = [v.detach().cpu().double() for v in leaves]
    expected = differentiated(lambda v: dense(v, tables), exact)
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-4, atol=1e-6 * float(e.norm()))


@pytest.mark.parametrize("case", CASES_OF_STATISTICS.values(), ids=CASES_OF_STATISTICS)
def test_the_loss_of_siglip(case, backend):
    if case is CHUNKS and backend.interpreted:
        pytest.skip("triton-cpu: 20 seconds")
    leaves, tables = batch(backend, case=case)
    statistics = sigmoid_statistics(*leaves, tables, backend.name)
    positives = softplus(-(statistics.positives + leaves[3]))
    loss = (statistics.softplus_sum.sum() + positives.sum()) / 2 / len(leaves[0])
    loss.backward()
    exact = [v.detach().cpu().double().requires_grad_() for v in leaves]
    expected = siglip_loss(*exact[:2], *case.ids, scale=exact[2], bias=exact[3])
    expected.backward()
    results = (loss, *(v.grad for v in leaves)), (expected, *(v.grad for v in exact))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=2e-5, atol=1e-7)


def test_small_terms_are_not_lost(backend):
    """Every row's sum is one of terms of about 1e-9, each right to a relative 1e-5."""
    leaves, tables = batch(backend, case=TILES, scalars=(1.0, -21.0))
    got = sigmoid_statistics(*leaves, tables, backend.name)
    expected = dense([v.cpu().double() for v in leaves], tables.map(torch.Tensor.cpu))
    assert expected[0].max() < 1e-7
    found = got.softplus_sum.cpu().double()
    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=0)


def test_the_sums_of_rows_and_columns_are_one(backend):
    leaves, tables = batch(backend, case=TILES)
    made = sigmoid_statistics(*leaves, tables, backend.name)
    rows, cols = made.softplus_sum.split([len(v) for v in leaves[:2]])
    torch.testing.assert_close(rows.sum(), cols.sum())


def test_a_pair_stands_in_the_list_twice(backend):
    leaves, tables = batch(backend, case=TILES)
    made = sigmoid_statistics(*leaves, tables, backend.name)
    slots, texts = made.positives.split(tables.pairs)
    assert torch.equal(texts, slots[tables.text_slots])


@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, told, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    leaves, tables = batch(backend, dtype)
    arguments = arguments_of(leaves, tables, backend, told)
    torch.library.opcheck(torch.ops.mxm_kernels.sigmoid_statistics.default, arguments)


@pytest.mark.parametrize(
    "needs", [(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)], ids=str
)
@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
def test_opcheck_of_the_backward(needs, told, backend):
    leaves, tables = batch(backend)
    *problem, name, budget = arguments_of([v.detach() for v in leaves], tables, backend, told)
    outputs = torch.ops.mxm_kernels.sigmoid_statistics(*problem, name, budget)
    upstream = [torch.randn_like(v) for v in outputs]
    torch.library.opcheck(
        torch.ops.mxm_kernels.sigmoid_statistics_backward.default,
        (*problem, outputs[1], *upstream, [*(bool(n) for n in needs), told], name, budget),
    )


def test_gradcheck(backend):
    if torch.float64 not in backend.dtypes:
        pytest.skip(f"{backend} takes no float64")
    leaves, tables = batch(backend, torch.float64, scalars=(3.0, -1.0))
    torch.autograd.gradcheck(lambda *v: tuple(sigmoid_statistics(*v, tables, backend.name)), leaves)


def test_compiled_whole(backend):
    torch.compiler.reset()
    leaves, tables = batch(backend)
    function = lambda *v: sigmoid_statistics(*v, tables, backend.name)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True)
    results = [differentiated(lambda v, f=f: f(*v), leaves) for f in (function, compiled)]
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager)
    torch.compiler.reset()


def test_second_derivatives_are_refused(backend):
    leaves, tables = batch(backend)
    statistics = sigmoid_statistics(*leaves, tables, backend.name)
    (grad,) = torch.autograd.grad(statistics.softplus_sum.sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_feature_that_is_not_finite_poisons_the_sums(side, value, backend):
    leaves, tables = batch(backend)
    with torch.no_grad():
        leaves[side][2, 3] = value
    statistics = sigmoid_statistics(*leaves, tables, backend.name)
    assert statistics.softplus_sum.isnan().all()


@pytest.mark.parametrize("which", [2, 3], ids=["scale", "bias"])
def test_a_scale_or_bias_that_is_not_a_number_poisons_every_row_with_a_negative(which, backend):
    leaves, tables = batch(backend)
    with torch.no_grad():
        leaves[which].fill_(torch.nan)
    statistics = sigmoid_statistics(*leaves, tables, backend.name)
    assert statistics.softplus_sum.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(dtype, backend):
    leaves, tables = batch(backend, dtype, TILES)
    runs = [
        differentiated(lambda v: sigmoid_statistics(*v, tables, backend.name), leaves)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("trained", range(4), ids=["image", "text", "scale", "bias"])
def test_a_frozen_side_gets_no_gradient_and_costs_no_product(trained, backend):
    leaves, tables = batch(backend)
    every = differentiated(lambda v: sigmoid_statistics(*v, tables, backend.name), leaves)[2:]
    counts = {}
    for kept in (trained, None):
        some = [v.detach().requires_grad_(kept is None or k == kept) for k, v in enumerate(leaves)]
        statistics = sigmoid_statistics(*some, tables, backend.name)
        grads = [u.to(v) for u, v in zip(upstream_of(statistics), statistics, strict=True)]
        counts[kept] = matrix_products(lambda: torch.autograd.backward(statistics, grads))  # noqa: B023
        if kept is not None:
            torch.testing.assert_close(some[kept].grad, every[kept])
            assert all(v.grad is None for k, v in enumerate(some) if k != kept)
    assert counts[None] - counts[trained] == (1 if trained < 2 else 2)
