"""The public list of rows: what it holds, and the package's losses written over it."""

import pytest
import torch
from torch.nn.functional import normalize, softplus

import mxm_kernels as mxm

IDS = [0, 0, 1, 1, 2, 7], [0, 1, 1, 2, 2, 9, 0]  # a row without a positive on either side
SAME = torch.tensor(IDS[0])[:, None] == torch.tensor(IDS[1])


def features(backend, rows=6, cols=7):
    """(rows, 8), (cols, 8) features and a teacher's."""
    made = [normalize(torch.randn(n, 8)).to(backend.device) for n in (rows, cols) * 2]
    names = "teacher_image_features", "teacher_text_features"
    return [f.requires_grad_() for f in made[:2]], dict(zip(names, made[2:], strict=True))


def hard(rows):
    """The hard loss in expectation."""
    weights = 1 / rows.spread(rows.counts.to(rows.neg_lse.dtype))
    return rows.sum(weights * softplus(rows.spread(rows.neg_lse) - rows.positives))


def soft(rows):
    """The soft loss."""
    return torch.logaddexp(rows.neg_lse, rows.logsumexp(rows.positives)) - rows.teacher_mean


def test_fields_are_those_of_the_matrix(backend):
    (x, y), teacher = features(backend)
    rows = mxm.contrastive_rows(x, y, IDS, logit_scale=4.0, backend=backend.name, **teacher)
    S = (4 * x @ y.T).detach().cpu()
    negatives = S.masked_fill(SAME, -torch.inf)
    n = torch.cat([negatives.logsumexp(1), negatives.logsumexp(0)])
    torch.testing.assert_close(rows.neg_lse.detach().cpu(), n)
    both = torch.cat([S[SAME], S.T[SAME.T]])
    torch.testing.assert_close(rows.positives.detach().cpu(), both)
    T = 4 * (teacher["teacher_image_features"] @ teacher["teacher_text_features"].T).cpu()
    u = torch.cat([(T.softmax(1) * S).sum(1), (T.softmax(0) * S).sum(0)])
    torch.testing.assert_close(rows.teacher_mean.detach().cpu(), u)
    assert rows.counts.tolist() == [*SAME.sum(1).tolist(), *SAME.sum(0).tolist()]
    assert rows.num_negatives.tolist() == [*(~SAME).sum(1).tolist(), *(~SAME).sum(0).tolist()]
    assert [len(half) for half in rows.halves(rows.neg_lse)] == [len(IDS[0]), len(IDS[1])]


def test_without_a_teacher_and_without_negatives(backend):
    (x, y), _ = features(backend, 2, 3)
    rows = mxm.contrastive_rows(x, y, (2, 3), logit_scale=4.0, backend=backend.name)
    assert rows.teacher_mean is None
    assert (rows.neg_lse == -torch.inf).all()


OPTIONS = {
    "none": {},
    "one direction": {"image_to_text_weight": 1.0},
    "row weights": {"image_weights": torch.rand(6) + 0.1, "text_weights": torch.rand(7) + 0.1},
    "a queue": {"text_queue": normalize(torch.randn(5, 8)), "image_to_text_weight": 0.25},
    "row scales": {"logit_scale": (5 * torch.rand(6) + 1, 5 * torch.rand(7) + 1)},
    "teacher scale": {"teacher_logit_scale": 3.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_over_it_are_those_of_the_package(name, backend):
    (x, y), teacher = features(backend)

    def there(value):
        moved = [v.to(backend.device) for v in value] if isinstance(value, tuple) else value
        return value.to(backend.device) if isinstance(value, torch.Tensor) else moved

    given = {"logit_scale": 4.0, "backend": backend.name, **teacher}
    given |= {option: there(value) for option, value in OPTIONS[name].items()}
    rows = mxm.contrastive_rows(x, y, IDS, **given)
    paired = rows.counts > 0
    of_hard = torch.where(paired, hard(rows), 0)
    ours = 0.6 * rows.mean(of_hard) + 0.4 * rows.mean(soft(rows), of_every_row=True)
    theirs = mxm.fused_mfh_loss(x, y, IDS, rounds=None, **given)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, (x, y)) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_it_is_differentiable_once(backend):
    (x, y), _ = features(backend)
    rows = mxm.contrastive_rows(x, y, IDS, logit_scale=4.0, backend=backend.name)
    (dx,) = torch.autograd.grad(rows.neg_lse.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "option", ["soft_weight", "label_smoothing", "pair_weights", "reduction", "diagnostics"]
)
def test_options_of_formulas_are_refused(option):
    x = torch.eye(4)
    with pytest.raises(TypeError, match=f"contrastive_rows takes no {option}"):
        mxm.contrastive_rows(x, x, (1, 1), logit_scale=4.0, **{option: 0.5})
