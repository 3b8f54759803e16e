"""Tensors that were made in inference mode, as any argument of a training step, and the reverse."""

import pytest
import torch
from torch import Tensor, nn

from mxm_kernels import Folds, GradientCache, draw_selection, fold_mean, fused_mfh_loss
from mxm_kernels.retrieval import retrieval_metrics
from tests.support.tensors import EVERY, IDS, PUBLIC, annotations, call_with, leaves_of, losses_of

IDENTIFIERS = [f"{loss}-{argument}" for loss, argument in EVERY]


def inferred(value):
    """The same, made in inference mode."""
    if isinstance(value, tuple):
        return tuple(map(inferred, value))
    with torch.inference_mode():
        return value.clone()


@pytest.mark.parametrize(("loss", "argument"), EVERY, ids=IDENTIFIERS)
def test_a_tensor_of_inference_mode_is_as_good_as_another(loss, argument):
    """Whichever argument it is: the same loss, and the same gradients of the others."""
    plain = call_with(loss, argument)
    given = plain | {argument.name: inferred(plain[argument.name])}
    made = []
    for each in (plain, given):
        leaves = {n: v for n, v in leaves_of(each).items() if not n.startswith(argument.name)}
        for leaf in leaves.values():
            leaf.grad = None
            leaf.requires_grad_()
        torch.manual_seed(0)  # of the rows that self-distillation draws
        losses = losses_of(loss, each)
        losses.backward()
        made.append([losses.detach(), *(leaf.grad.clone() for leaf in leaves.values())])
    assert all(map(torch.equal, *made))


def _ids(kind: str):
    if kind == "ids":
        return tuple(map(torch.tensor, IDS))
    return Folds.from_ids(*IDS)


def _seeded(loss, given):
    """The loss; self-distillation draws rows."""
    torch.manual_seed(0)
    return losses_of(loss, given)


@pytest.mark.parametrize("kind", ["ids", "folds"])
@pytest.mark.parametrize("loss", PUBLIC)
def test_folds_of_inference_mode_train_and_the_reverse(kind, loss):
    taken = annotations(PUBLIC[loss])
    if "folds" not in taken:
        return  # a loss without pairs
    given = call_with(loss, next(argument for name, argument in EVERY if name == loss))
    one_side = "features" in taken
    with torch.inference_mode():
        made = torch.tensor(IDS[0]) if one_side else _ids(kind)
    for leaf in leaves_of(given).values():
        leaf.requires_grad_()
    trained = _seeded(loss, given | {"folds": made})
    trained.backward()
    with torch.inference_mode():
        assert torch.equal(_seeded(loss, given | {"folds": made}), trained)
    made = torch.tensor(IDS[0]) if one_side else _ids(kind)
    with torch.inference_mode():  # what is kept beside them is made here
        first = _seeded(loss, given | {"folds": made})
    again = _seeded(loss, given | {"folds": made})
    again.backward()
    assert torch.equal(first, again)


def test_a_selection_and_rounds_drawn_in_inference_mode():
    x, y = torch.rand(5, 4), torch.rand(6, 4)
    with torch.inference_mode():
        selection = draw_selection(IDS, x, y, rounds=3)
    x.requires_grad_()
    fused_mfh_loss(x, y, IDS, logit_scale=3.0, selection=selection).backward()
    assert bool(x.grad.isfinite().all())


def test_folds_that_retrieval_read_first():
    folds = Folds.from_ids(*IDS)
    x, y = torch.rand(5, 4, requires_grad=True), torch.rand(6, 4)
    retrieval_metrics(inferred(x.detach()), inferred(y), folds)
    fused_mfh_loss(x, y, folds, logit_scale=3.0, rounds=None).backward()
    assert bool(x.grad.isfinite().all())


def test_the_mean_of_folds_by_ids_of_inference_mode():
    x = torch.rand(5, 4, requires_grad=True)
    means, _ = fold_mean(x, inferred(torch.tensor(IDS[0])))
    means.sum().backward()
    assert bool(x.grad.isfinite().all())
    again, _ = fold_mean(inferred(x.detach()), torch.tensor(IDS[0]))
    assert torch.equal(again, means)


def test_gradient_cache_on_inputs_of_inference_mode():
    encoder = nn.Linear(3, 4)
    inputs: Tensor = inferred(torch.rand(6, 3))
    cache = GradientCache(2)
    x = cache.encode(lambda rows: encoder(rows.clone()), inputs)  # which a linear layer saves
    scale = inferred(torch.tensor(3.0))
    fused_mfh_loss(x, x.detach(), (1, 1), logit_scale=scale, rounds=None).backward()
    cache.backward()
    assert bool(encoder.weight.grad.isfinite().all())
