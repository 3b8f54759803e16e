"""The diagnostics of the statistics operator: right, and free."""

from dataclasses import replace

import pytest
import torch

from mxm_kernels.ops.statistics import statistics
from tests.support.cases import NAMED_CASES, Case
from tests.support.mfh import batch
from tests.support.products import matrix_products


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
