"""The sums of S over the negatives, which label smoothing reads: those of the dense matrix."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import Folds, Queue
from mxm_kernels.backends.interface import Memory
from mxm_kernels.ops.statistics import statistics
from tests.support.compare import error
from tests.support.family import LOSSES, keyword_arguments

# Rows and columns of more than one tile, of less than one, without a negative.
SHAPES = {
    "ragged": (37, 150, 130),
    "one": (1, 1, 1),
    "narrow": (300, 2, 3),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MEMORY = {"kept": Memory(1 << 26, keep=True), "multiplied again": Memory(0)}


def _batch(M, N, D, dtype, device):
    g = torch.Generator().manual_seed(M + N)
    x, y, tx, ty = (
        torch.randn(n, D, generator=g, dtype=torch.float64).to(device, dtype) for n in (M, N, M, N)
    )
    folds = Folds.from_ids(torch.arange(M) // 3, torch.arange(N) // 4).to(device)
    grad = torch.randn(M + N, generator=g, dtype=torch.float64).to(device)
    return (x, y), (tx, ty), folds.tables(M, N, x.device), grad


def _dense(x, y, s, tables):
    """(M + N,) sums, in the dtype of the features."""
    negative = tables.image_groups[:, None] != tables.text_groups[None, :]
    S = torch.where(negative, s * x @ y.T, 0.0)
    return torch.cat([S.sum(1), S.sum(0)])


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(memory, shape, with_teacher, dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    features, teacher, tables, grad = _batch(*shape, dtype, backend.device)
    wide = [v.double().requires_grad_() for v in (*features, torch.tensor(1.7))]
    wide[2] = wide[2].detach().to(backend.device).requires_grad_()
    full = _dense(*wide, tables)
    leaves = [v.detach().requires_grad_() for v in (*features, wide[2].float())]
    of_teacher = (teacher, leaves[2].detach()) if with_teacher else (None, None)
    made = statistics(
        *leaves[:2], of_teacher[0], leaves[2], of_teacher[1], tables, backend.name,
        neg_sum=True, memory=memory,
    ).neg_sum  # fmt: skip
    assert made.dtype == torch.float32
    size = float(full.detach().abs().max().clamp(min=1))
    torch.testing.assert_close(made.double(), full.detach(), rtol=1e-5, atol=1e-5 * size)
    expected = torch.autograd.grad((full * grad).sum(), wide)
    actual = torch.autograd.grad((made * grad.float()).sum(), leaves)
    for a, e in zip(actual, expected, strict=True):
        bound = 4 * torch.finfo(a.dtype).eps if a.ndim else 1e-5
        assert error(a.cpu(), e.cpu()) <= max(bound, 1e-5) * max(1.0, float(e.norm()))


def test_float64_has_its_own_accumulator():
    (x, y), _, tables, _ = _batch(5, 9, 3, torch.float64, "cpu")
    s = torch.tensor(1.7, dtype=torch.float64)
    made = statistics(x, y, None, s, None, tables, "blocked", neg_sum=True)
    torch.testing.assert_close(made.neg_sum, _dense(x, y, s, tables), rtol=1e-14, atol=1e-14)


def test_the_other_statistics_keep_their_bits(backend):
    (x, y), teacher, tables, _ = _batch(37, 150, 32, torch.float32, backend.device)
    s = torch.tensor(9.0, device=backend.device)
    plain = statistics(x, y, teacher, s, s, tables, backend.name)
    summed = statistics(x, y, teacher, s, s, tables, backend.name, neg_sum=True)
    assert len(plain.neg_sum) == 0
    for name, value in plain._asdict().items():
        if name != "neg_sum":
            assert torch.equal(value, getattr(summed, name)), name


SMOOTHED = {name: loss for name, loss in LOSSES.items() if "label_smoothing" in loss.options}


@pytest.mark.parametrize("queue", [False, True], ids=["batch", "queue"])
@pytest.mark.parametrize("loss", SMOOTHED.values(), ids=SMOOTHED)
def test_many_positives_and_one_negative(loss, queue, backend):
    """The sum of the positives, subtracted from that of the row, would leave nothing right."""
    g = torch.Generator().manual_seed(0)
    count = 100 if backend.interpreted else 5000
    ids = torch.zeros(4, dtype=torch.int64), torch.tensor([0] * count + [1])
    common = torch.randn(16, generator=g, dtype=torch.float64)
    rows = [
        common + 0.1 * torch.randn(n, 16, generator=g, dtype=torch.float64) for n in (4, count + 1)
    ]
    x, y = (normalize(v) for v in rows)
    y[-1] = -y[-1]
    options = {"logit_scale": 30.0, "label_smoothing": 0.3, "reduction": "none"}
    drawn = "generator" in keyword_arguments(loss.function)
    results = []
    for dtype, name in ((torch.float64, "blocked"), (torch.float32, backend.name)):
        leaves = [v.to(backend.device, dtype, copy=True).requires_grad_() for v in (x, y)]
        more = {"generator": torch.Generator().manual_seed(1)} if drawn else {}
        if queue:
            folds = Folds.from_ids(ids[0], ids[1]).to(backend.device)
            more["text_queue"] = Queue(leaves[1].detach(), folds)
        made = loss.fused(*leaves, ids, backend=name, **options, **more)
        torch.cat(made).sum().backward()
        results.append([torch.cat(made).detach(), *(v.grad for v in leaves)])
    # The gradients of the positives' features cancel among 5,000 terms.
    for exact, got, bound in zip(*results, (5e-6, 1e-4, 1e-4), strict=True):
        assert error(got.cpu(), exact.cpu()) <= bound * float(exact.norm())
