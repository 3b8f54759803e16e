"""When a backend's kernel stands in for the formulas in PyTorch, and that nothing changes by it."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

import mxm_kernels as mxm
from mxm_kernels import backends
from mxm_kernels.core import formulas
from mxm_kernels.core.batch import make_batch
from mxm_kernels.core.formulas import Formula
from mxm_kernels.core.make_rows import rows_of
from mxm_kernels.core.pair_weights import expected_weights
from mxm_kernels.core.row_losses import row_losses
from mxm_kernels.core.rows import Rows
from tests.support.cases import NAMED_CASES

CASE = NAMED_CASES["rows without positives"]


@pytest.fixture
def launched(fusing, monkeypatch):
    """Names of the formulas that the kernel has computed."""
    kind, names = type(backends.load(fusing.name)), []

    def counted(self, rows, formula, real=kind.row_losses):
        names.append(formula.name)
        return real(self, rows, formula)

    monkeypatch.setattr(kind, "row_losses", counted)
    return names


def _rows(backend, **options):
    """The list of rows of a ragged batch, and the weights of its positives."""
    x, y, *_ = (f.to(backend.device) for f in CASE.features(torch.float32))
    folds = mxm.Folds.from_ids(*CASE.ids).to(backend.device)
    batch = make_batch(
        x.requires_grad_(), y.requires_grad_(), folds, 9.0, {"backend": backend.name, **options}
    )
    rows = rows_of(batch, reads_teacher=False)
    return rows, expected_weights(batch.tables, batch.dtype)


def _losses(rows, weights, formula=formulas.info_nce, factors=None):
    ones = torch.ones_like(rows.neg_lse) if factors is None else factors
    return row_losses(rows, formula, weights, ones, 1.0, ones, 0.0)


def test_a_plain_list_is_the_kernels(fusing, launched):
    rows, weights = _rows(fusing)
    _losses(rows, weights)
    assert launched == ["info_nce"]


@dataclass(frozen=True, eq=False)
class MoreRows(Rows):
    """The list with a field that no kernel has heard of."""

    extra: Tensor | None = None
    factor: float = 1.0


@pytest.mark.parametrize(
    ("fields", "kernel"),
    [
        ({}, True),
        ({"factor": 1.0}, True),
        ({"factor": 2.0}, False),
        ({"extra": torch.zeros(())}, False),
    ],
    ids=str,
)
def test_a_field_that_the_kernel_does_not_read_is_left_to_pytorch(fields, kernel, fusing, launched):
    rows, weights = _rows(fusing)
    more = MoreRows(**vars(rows), **fields)
    torch.testing.assert_close(_losses(more, weights), _losses(replace(rows), weights))
    assert launched == ["info_nce"] * (2 if kernel else 1)


def test_what_a_queue_leaves_out_is_left_to_pytorch(fusing, launched):
    rows, weights = _rows(fusing)
    _losses(replace(rows, excluded_lse=torch.zeros_like(rows.neg_lse)), weights)
    assert launched == []


def test_label_smoothing_is_the_kernels(fusing, launched, monkeypatch):
    rows, weights = _rows(fusing)
    smoothed = replace(rows, neg_sum=torch.randn_like(rows.neg_lse), label_smoothing=0.3)
    losses = _losses(smoothed, weights)
    assert launched == ["info_nce"]
    assert not torch.allclose(losses, _losses(rows, weights))
    torch.testing.assert_close(losses, formulas.info_nce(smoothed, weights))


def test_queued_negatives_are_the_kernels(fusing, launched):
    """They are merged into what it reads."""
    rows, weights = _rows(fusing)
    queued = replace(rows, queued_negatives=torch.ones_like(rows.neg_lse))
    _losses(queued, weights, formulas.debiased(0.1))
    assert launched == ["debiased"]


def test_weights_that_want_a_gradient_are_left_to_pytorch(fusing, launched):
    rows, weights = _rows(fusing)
    learned = weights.clone().requires_grad_()
    _losses(rows, learned).sum().backward()
    assert learned.grad is not None and bool(learned.grad.any())
    factors = torch.ones_like(rows.neg_lse).requires_grad_()
    rows, weights = _rows(fusing)
    _losses(rows, weights, factors=factors).sum().backward()
    assert factors.grad is not None and bool(factors.grad.any())
    assert launched == []


def test_a_formula_that_no_kernel_knows_is_left_to_pytorch(fusing, launched):
    rows, weights = _rows(fusing)
    expected = _losses(rows, weights)
    assert launched == ["info_nce"]

    def function(rows, weights):
        return formulas.info_nce(rows, weights)

    for formula in (function, Formula("another", function)):
        torch.testing.assert_close(_losses(rows, weights, formula), expected)
    assert launched == ["info_nce"]


LOSSES = {
    "masked": mxm.fused_info_nce_loss,
    "unmasked": partial(mxm.fused_info_nce_loss, mask_false_negatives=False),
    "decoupled": mxm.fused_decoupled_loss,
    "out": mxm.fused_supcon_loss,
    "in": partial(mxm.fused_supcon_loss, positives="in"),
    "debiased": partial(mxm.fused_debiased_loss, positive_prior=0.02),
    "debiased, on its floor": partial(mxm.fused_debiased_loss, positive_prior=0.9),
    "soft": mxm.fused_soft_loss,
    "mfh": partial(mxm.fused_mfh_loss, rounds=None),
}
# Options that the kernel reads, and who takes them.
READ = {
    "nothing": {},
    "a teacher and weights of the rows": {"teacher": True, "image_weights": True},
    "shares and weights": {"soft_weight": True, "teacher": True, "text_weights": True},
}


def _options(loss, names, x, y, tx, ty):
    """Values of the options; a teacher has a share where the loss takes one."""
    g = torch.Generator().manual_seed(2)
    a, b, c, d = (torch.rand(n, generator=g).to(x.device) for n in (len(x), len(y)) * 2)
    a[::3] = 0  # rows that count for nothing
    function = getattr(loss, "func", loss)
    takes_share = "soft_weight" not in function.not_taken
    options = {"image_weights": a, "text_weights": b}
    options = {name: value for name, value in options.items() if name in names}
    if "teacher" in names or function is mxm.fused_soft_loss:
        options |= {"teacher_image_features": tx, "teacher_text_features": ty}
    if takes_share and "soft_weight" in names:
        options["soft_weight"] = c, d
    elif takes_share and "teacher" in names:
        options["soft_weight"] = 0.4
    return options


@pytest.mark.parametrize("options", READ.values(), ids=READ)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_by_the_kernel_is_the_loss_by_the_formulas(loss, options, fusing, monkeypatch):
    x, y, tx, ty = (f.to(fusing.device) for f in CASE.features(torch.float32))
    given, results = _options(LOSSES[loss], options, x, y, tx, ty), []
    kind, real, launched = type(backends.load(fusing.name)), backends.fuses, []
    for fused in (True, False):
        monkeypatch.setattr(backends, "fuses", real if fused else lambda *_: False)

        def counted(self, *arguments, method=kind.row_losses):
            launched.append(fused)  # noqa: B023
            return method(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "row_losses", counted)
            leaves = [v.clone().requires_grad_() for v in (x, y, torch.tensor(20.0).to(x))]
            value = LOSSES[loss](
                *leaves[:2], CASE.ids, logit_scale=leaves[2], image_to_text_weight=0.3,
                backend=fusing.name, **given,
            )  # fmt: skip
        results.append((value, *torch.autograd.grad(value * 7, leaves)))
    assert launched == [True]
    for kernel, formula in zip(*results, strict=True):
        size = formula.abs().max().item()
        torch.testing.assert_close(kernel, formula, rtol=2e-5, atol=2e-6 * size)
