"""What every operator keeps and allocates: no M x N memory, on any backend."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import Folds, backends, fused_mfh_loss, fused_siglip_loss, memory_budget
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics
from tests.support import sigmoid
from tests.support.memory import WORKSPACE, peak_bytes, saved_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autograd_keeps_numbers_per_row_and_per_pair_only(dtype, backend):
    """Beside its inputs: O(M + N + P) numbers, at two sizes; never a similarity matrix.

    What is kept within the memory budget is tests/backends/test_kept.py's: here nothing is.
    """
    fuses = bool(backends.load(backend.name).fused_formulas)  # PyTorch's formulas keep more
    for instances in (4, 8) if backend.interpreted else (40, 80) if fuses else (80, 160):
        M, N, P = instances * 6, instances * 5, instances * 30
        x, y, tx, ty = (
            normalize(torch.randn(n, 32)).to(backend.device, dtype) for n in (M, N, M, N)
        )
        x, y = x.requires_grad_(), y.requires_grad_()
        folds = Folds.uniform(6, 5)
        tables = folds.tables(M, N, x.device)
        known = [x, y, tx, ty, *(v for v in vars(tables).values() if torch.is_tensor(v))]
        with memory_budget(0):
            saved = saved_bytes(
                lambda: fused_mfh_loss(
                    x, y, folds, logit_scale=20.0, teacher_image_features=tx,  # noqa: B023
                    teacher_text_features=ty, backend=backend.name,  # noqa: B023
                ),
                known,
            )  # fmt: skip
        # float32: at most 8 numbers a row and 8 or 12 a pair, which is in the list twice.
        assert saved <= 4 * (8 * (M + N) + (8 if fuses else 12) * P) + 1024
        if not backend.interpreted:
            assert saved < 4 * M * N / 4


def test_sigmoid_statistics_keep_two_numbers_a_pair(backend):
    leaves, tables = sigmoid.batch(backend, case=sigmoid.TILES)
    known = [*leaves, *(v for v in vars(tables).values() if torch.is_tensor(v))]
    run = lambda: sigmoid_statistics(*leaves, tables, backend.name).softplus_sum  # noqa: E731
    assert saved_bytes(run, known) <= 2 * 4 * tables.pairs


def _mfh(x, y, tx, ty, backend):
    return fused_mfh_loss(x, y, (3, 3), logit_scale=20.0, backend=backend.name)


def _mfh_with_teacher(x, y, tx, ty, backend):
    teacher = {"teacher_image_features": tx, "teacher_text_features": ty}
    return fused_mfh_loss(x, y, (3, 3), logit_scale=20.0, backend=backend.name, **teacher)


def _siglip(x, y, tx, ty, backend):
    scalars = {"logit_scale": 10.0, "logit_bias": -10.0}
    return fused_siglip_loss(x, y, (3, 3), backend=backend.name, **scalars)


def _sigmoid_statistics(x, y, tx, ty, backend):
    s, b = (torch.tensor(v, device=backend.device) for v in (10.0, -10.0))
    tables = Folds.uniform(3, 3).tables(len(x), len(y), x.device)
    return sigmoid_statistics(x, y, s, b, tables, backend.name).softplus_sum.sum()


# Numbers beside the workspace, for each feature (of both sides), row and pair.
STEPS = {
    "mfh": (_mfh, 3, 40, 200),
    "mfh with a teacher": (_mfh_with_teacher, 3, 40, 200),
    "siglip": (_siglip, 5, 20, 100),
    "sigmoid statistics": (_sigmoid_statistics, 3, 20, 100),
}


@pytest.mark.parametrize("name", STEPS)
def test_peak_memory_is_features_rows_pairs_and_a_workspace(name, backend, monkeypatch):
    """O((M + N) D) plus a constant, at a size where the similarity matrix would not fit in it."""
    if backend.interpreted:
        pytest.skip("triton-cpu: interpreted kernels allocate in NumPy, unseen by PyTorch")
    if backend.name == "triton":  # a large card would hold all of the smaller matrix
        monkeypatch.setattr("mxm_kernels.memory._cuda", 256 << 20)
    loss_of, of_features, of_rows, of_pairs = STEPS[name]
    D = 16
    dtypes = (torch.float32, torch.bfloat16) if backend.name == "triton" else (torch.float32,)
    for rows, dtype in itertools.product((3000, 12000), dtypes):
        features = (normalize(torch.randn(rows, D)) for _ in range(4))
        x, y, tx, ty = (f.to(backend.device, dtype) for f in features)
        x, y = x.requires_grad_(), y.requires_grad_()
        step = lambda: loss_of(x, y, tx, ty, backend).backward()  # noqa: B023, E731
        step()  # tables of the folds and, on a GPU, the BLAS workspace, stay allocated
        x.grad = y.grad = None
        peak = peak_bytes(step, backend.device)
        linear = 4 * (of_features * 2 * rows * D + of_rows * 2 * rows + of_pairs * 3 * rows)
        assert peak <= WORKSPACE[backend.name] + linear
        assert peak < 4 * rows * rows or rows == 3000
