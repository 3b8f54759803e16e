"""A strided or expanded view gives what its contiguous copy gives, in every argument."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._pytree import tree_map_only

from mxm_kernels import Folds, fused_mfh_loss

FOLDS, ROWS, TEXTS, D = Folds.uniform(3, 4), 6, 8, 5
PAIRS = 2 * 3 * 4


def _columns(*shape):
    """Two vectors or matrices that are columns of one tensor."""
    return torch.rand(*shape, 2, dtype=torch.float32).unbind(-1)


def _arguments(name):
    """The argument under test, as views."""
    torch.manual_seed(1)
    if name == "expanded pair_weights":
        return {"pair_weights": (torch.tensor(0.25).expand(PAIRS), torch.tensor(0.3).expand(PAIRS))}
    if name == "pair_weights":
        return {name: _columns(PAIRS)}
    if name == "logit_scale":
        return {name: (_columns(ROWS)[1] + 5, _columns(TEXTS)[0] + 5)}
    if name == "row weights":
        return {"image_weights": _columns(ROWS)[0], "text_weights": _columns(TEXTS)[1]}
    if name == "queues":
        return {"image_queue": torch.randn(D, 7).T, "text_queue": torch.randn(3, 2 * D)[:, ::2]}
    teacher = torch.randn(D, ROWS).T, torch.randn(TEXTS, 2 * D)[:, 1::2]
    return dict(zip(("teacher_image_features", "teacher_text_features"), teacher, strict=True))


def _loss_and_gradients(backend, options):
    x = torch.linspace(-1, 1, ROWS * D).view(ROWS, D).sin().to(backend.device).requires_grad_()
    y = torch.linspace(2, -1, TEXTS * D).view(TEXTS, D).cos().to(backend.device).requires_grad_()
    options = {"logit_scale": 7.0, "rounds": None, "backend": backend.name} | options
    loss = fused_mfh_loss(normalize(x), normalize(y), FOLDS, **options)
    value = torch.cat(loss) if isinstance(loss, tuple) else loss
    value.sum().backward()
    return value.detach(), x.grad, y.grad


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"image_to_text_weight": 1.0}])
@pytest.mark.parametrize(
    "name",
    ["pair_weights", "expanded pair_weights", "row weights", "logit_scale", "teacher", "queues"],
)
def test_views(name, options, backend):
    given = tree_map_only(torch.Tensor, lambda t: t.to(backend.device), _arguments(name))
    copies = tree_map_only(torch.Tensor, torch.Tensor.contiguous, given)
    for got, expected in zip(
        _loss_and_gradients(backend, options | given),
        _loss_and_gradients(backend, options | copies),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
