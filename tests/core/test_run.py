"""What options add to the list of rows."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import (
    backends,
    checks,
    fused_cwcl_loss,
    fused_info_nce_loss,
    fused_mfh_loss,
    fused_siglip_loss,
    fused_supcon_loss,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_smoothing_reads_the_matrix_whose_rows_were_scaled(dtype, backend):
    """The only column of a row has all of its softmax and of its smoothing: the loss is 0.

    A scale for each row is rounded into 16-bit features; unrounded, the sum of a row is off by
    up to 0.2 here.
    """
    x, y = (normalize(torch.randn(n, 6)).to(backend.device, dtype) for n in (5, 1))
    scales = tuple(50 + 50 * torch.rand(n, device=backend.device) for n in (5, 1))
    rows, _ = fused_supcon_loss(
        x, y, (5, 1), logit_scale=scales, label_smoothing=0.1, reduction="none",
        backend=backend.name,
    )  # fmt: skip
    assert float(rows.abs().max()) < 1e-4


OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "queue": {"text_queue": torch.eye(4, 6)},
}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_row_scale_of_zero_shows_where_nothing_can_be_looked_at(
    options, side, backend, monkeypatch
):
    monkeypatch.setattr(checks, "can_look", lambda tensor: False)
    x, y = (normalize(torch.randn(n, 6)).to(backend.device) for n in (5, 4))
    scales = tuple(torch.full((n,), 9.0, device=backend.device) for n in (5, 4))
    scales[side][2] = 0.0
    moved = {k: v.to(backend.device) if torch.is_tensor(v) else v for k, v in options.items()}
    losses = fused_supcon_loss(
        x, y, ([0, 0, 1, 1, 2], [0, 1, 2, 3]), logit_scale=scales, reduction="none",
        backend=backend.name, **moved,
    )  # fmt: skip
    # A row that is NaN makes every one NaN, so that no gradient of the call is finite.
    assert all(bool(of_side.isnan().all()) for of_side in losses)


def test_a_teacher_scale_of_zero_shows_beside_row_scales(backend, monkeypatch):
    monkeypatch.setattr(checks, "can_look", lambda tensor: False)
    x, y, a, b = (normalize(torch.randn(n, 6)).to(backend.device) for n in (4, 4, 4, 4))
    scales = tuple(torch.full((4,), 9.0, device=backend.device) for _ in range(2))
    loss = fused_mfh_loss(
        x, y, (2, 2), logit_scale=scales, teacher_image_features=a, teacher_text_features=b,
        teacher_logit_scale=torch.zeros((), device=backend.device), backend=backend.name,
    )  # fmt: skip
    assert bool(loss.isnan())


@pytest.mark.parametrize("loss", [fused_supcon_loss, fused_siglip_loss])
@pytest.mark.parametrize("learned", ["x", "y", "x scales", "y scales"])
def test_row_scales_where_one_tensor_is_learned(learned, loss, backend):
    """The gradient of what is learned alone is the one it has beside the others."""
    features = [normalize(torch.randn(n, 6)).to(backend.device) for n in (6, 4)]
    scales = [9 + torch.rand(n).to(backend.device) for n in (6, 4)]
    bias = {"logit_bias": -5.0} if loss is fused_siglip_loss else {}
    names, found = ["x", "y", "x scales", "y scales"], []
    for chosen in ([learned], names):
        leaves = [v.clone() for v in (*features, *scales)]
        for name, leaf in zip(names, leaves, strict=True):
            leaf.requires_grad_(name in chosen)
        x, y, *own = leaves
        loss(x, y, (3, 2), logit_scale=own, backend=backend.name, **bias).backward()
        found.append([v.grad for v in leaves])
        assert [v.grad is not None for v in leaves] == [name in chosen for name in names]
    place = names.index(learned)
    torch.testing.assert_close(found[0][place], found[1][place])


@pytest.mark.parametrize("trained", [0, 1])
@pytest.mark.parametrize(
    "way", ["plain", "label smoothing", "a scale for each row", "a target of CWCL"]
)
def test_a_frozen_tower_costs_no_product_in_any_way_to_the_operator(way, trained, monkeypatch):
    """Whatever the features pass through on their way, the operator is asked for one gradient."""
    x, y, a, b = (torch.randn(6, 4) for _ in range(4))
    (x, y)[trained].requires_grad_()
    asked, kind = [], type(backends.load("blocked"))

    def recorded(self, problem, statistics, upstream, needs, memory, real=kind.backward):
        asked.append(needs[:2])
        return real(self, problem, statistics, upstream, needs, memory)

    monkeypatch.setattr(kind, "backward", recorded)
    given = {"logit_scale": torch.tensor(3.0), "backend": "blocked"}
    if way == "a target of CWCL":
        given |= {"teacher_image_features": a, "teacher_text_features": b}
        fused_cwcl_loss(x, y, **given).backward()
    else:
        given |= {"label_smoothing": 0.1} if way == "label smoothing" else {}
        given |= {"logit_scale": (torch.arange(1.0, 7.0),) * 2} if way.startswith("a scale") else {}
        fused_info_nce_loss(x, y, (2, 2), **given).backward()
    assert asked == [(not trained, trained == 1)] * (2 if way.startswith("a scale") else 1)
    assert (x, y)[1 - trained].grad is None


def test_the_same_vector_of_scales_for_both_sides(backend):
    """Is not one scale of all rows."""
    x, y = (normalize(torch.randn(6, 4)).to(backend.device) for _ in range(2))
    s = torch.arange(1.0, 7.0, device=backend.device)
    one, other = (
        fused_info_nce_loss(x, y, (2, 2), logit_scale=scales, backend=backend.name)
        for scales in ((s, s), (s, s.clone()))
    )
    assert torch.equal(one, other)
