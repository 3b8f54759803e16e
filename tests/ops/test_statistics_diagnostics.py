"""The diagnostics of the statistics operator: right, and free."""

from dataclasses import replace

import pytest
import torch

from mxm_kernels.ops.statistics import statistics
from tests.support.cases import NAMED_CASES, Case
from tests.support.mfh import batch
from tests.support.products import matrix_products
from tests.support.rules import rules_of


@pytest.mark.parametrize("with_teacher", [True, False])
def test_opcheck_with_diagnostics(with_teacher, backend):
    x, y, (tx, ty), s, t = batch(backend)
    teacher = (tx, ty, s, s.detach()) if with_teacher else (None, None, s, None)
    for told in (False, True):
        rules = rules_of(x, y, given=told, teacher=with_teacher)
        problem = x, y, *teacher, *t.pair_tables(), *rules
        arguments = (*problem, backend.name, True, True, 1 << 26, True)
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
    if case is DIAGNOSED["more than a chunk"] and backend.interpreted:
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
    unit = 4 * torch.finfo(got.neg_lse.dtype).eps  # of logits as large as the scales
    expected = torch.cat([S.amax(1), S.amax(0)])
    hardest, entropy = (v.cpu().double() for v in (got.hardest, got.entropy))
    torch.testing.assert_close(hardest, expected, rtol=0, atol=unit * s.item())
    if with_teacher:
        expected = torch.cat([torch.special.entr(T.softmax(d)).sum(d) for d in (1, 0)])
        torch.testing.assert_close(entropy, expected, rtol=0, atol=2 * unit * t.item())
        assert entropy.min() >= 0
    else:
        assert entropy.numel() == 0
    assert not got.hardest.requires_grad and not got.entropy.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_diagnostics_change_no_bit_and_cost_no_product(with_teacher, dtype, backend):
    x, y, teacher, s, tables = batch(backend, dtype, NAMED_CASES["several tiles and tails"])
    options = (teacher, s, s.detach()) if with_teacher else (None, s, None)
    results, products = [], []
    for diagnostics in (False, True):
        products.append(
            matrix_products(
                lambda: results.append(
                    statistics(x, y, *options, tables, backend.name, diagnostics)  # noqa: B023
                )
            )
        )
    without, with_them = results
    assert all(torch.equal(a, b) for a, b in zip(without[:4], with_them[:4], strict=True))
    assert without.hardest.numel() == without.entropy.numel() == 0
    assert products[0] == products[1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_show_in_the_diagnostics(bad, backend):
    """Every row of this batch has a negative; the text rows see the image row with the feature."""
    x, y, teacher, s, tables = batch(backend)
    with torch.no_grad():
        x[1, 1] = teacher[0][1, 1] = bad
    got = statistics(x, y, teacher, s, s.detach(), tables, backend.name, True)
    assert got.hardest[1].isnan() and got.entropy[1].isnan()
    assert torch.equal(got.hardest.isnan(), got.neg_lse.isnan())


@pytest.mark.usefixtures("compiler")
def test_compiled_with_diagnostics(backend):
    x, y, teacher, s, tables = batch(backend)

    def run(x, y, s):
        got = statistics(x, y, teacher, s, s.detach(), tables, backend.name, True)
        return got.neg_lse.sum() + got.teacher_mean.sum(), got.hardest, got.entropy

    for eager, fused in zip(run(x, y, s), torch.compile(run, fullgraph=True)(x, y, s), strict=True):
        torch.testing.assert_close(fused, eager)
