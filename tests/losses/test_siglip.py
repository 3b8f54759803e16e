"""The public sigmoid loss: mean of both directions, weights, queues, scales, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid, normalize

from mxm_kernels import Folds, Queue, fused_siglip_loss
from reference import family
from reference.mfh import group_matrix
from reference.siglip import siglip_loss
from tests.support.cases import NAMED_CASES, cases
from tests.support.compare import assert_as_good

RAGGED = NAMED_CASES["ragged and shuffled"]


def _dense(x, y, ids, s, b, *, row_scales=None, queue=None, pair_weights=None, weights=None):
    """Both directions with the whole matrices; scales, queue and weights of the images only."""
    same = group_matrix(*ids)
    S = x @ y.T * (s if row_scales is None else row_scales[0][:, None])
    S_cols = (x @ y.T * (s if row_scales is None else row_scales[1])).T
    w = torch.ones(same.shape, dtype=x.dtype), torch.ones(same.T.shape, dtype=x.dtype)
    if pair_weights is not None:
        w[0][same], w[1].T[same] = (p.to(x.dtype) for p in pair_weights)
    rows, cols = (
        -(w_ * logsigmoid(torch.where(z, 1.0, -1.0) * (L + b))).sum(1)
        for w_, L, z in zip(w, (S, S_cols), (same, same.T), strict=True)
    )
    if queue is not None:
        features, queue_ids = queue
        scale = s if row_scales is None else row_scales[0][:, None]
        more = -logsigmoid(-(scale * (x @ features.to(x.dtype).T) + b))
        rows = rows + more.masked_fill(group_matrix(ids[0], queue_ids), 0).sum(1)
    every = torch.ones(len(rows), dtype=torch.bool)
    return rows, cols, (family.mean(rows, every, weights) + cols.mean()) / 2


@settings(max_examples=40)
@given(data=st.data())
def test_drawn_cases(backend, data):
    case = data.draw(cases(min(backend.most_rows, 24)))
    dtype = data.draw(st.sampled_from(backend.dtypes))
    features = [f.double() for f in case.features(dtype)[:2]]
    s, b = 1 / case.temperature, data.draw(st.sampled_from([-10.0, 0.0, 3.0]))
    queued, weighted = data.draw(st.booleans()), data.draw(st.booleans())
    scaled, paired = data.draw(st.booleans()), data.draw(st.booleans())
    g = torch.Generator().manual_seed(case.seed)
    rand = lambda n: torch.rand(n, generator=g, dtype=torch.float64) + 0.1  # noqa: E731
    M, N = len(features[0]), len(features[1])
    pairs = int(group_matrix(*case.ids).sum())
    queue = normalize(torch.randn(4, features[0].shape[1], generator=g)).to(dtype)
    queue_ids = torch.tensor([*case.image_ids, 1, 2, 3, 4][:4])
    image_weights, pair_weights = rand(M), (rand(pairs), rand(pairs))
    row_scales = s * rand(M), s * rand(N)

    def run(arithmetic, fused):
        x, y = (f.to(arithmetic, copy=True).requires_grad_() for f in features)
        wide = torch.promote_types(arithmetic, torch.float32)
        bias = torch.tensor(b, dtype=wide, requires_grad=True)
        if not fused:
            value = _dense(
                x, y, case.ids, s, bias.to(arithmetic),
                row_scales=[v.to(arithmetic) for v in row_scales] if scaled else None,
                queue=(queue, queue_ids) if queued else None,
                pair_weights=pair_weights if paired else None,
                weights=image_weights.to(arithmetic) if weighted else None,
            )[2]  # fmt: skip
        else:
            on = lambda v: v.to(backend.device, wide)  # noqa: E731
            folds = Folds.from_ids(case.ids[0], queue_ids).to(backend.device)
            options = {"text_queue": Queue(queue.to(backend.device), folds)} if queued else {}
            options |= {"pair_weights": tuple(map(on, pair_weights))} if paired else {}
            options |= {"image_weights": on(image_weights)} if weighted else {}
            value = fused_siglip_loss(
                x.to(backend.device), y.to(backend.device), case.ids, logit_bias=on(bias),
                logit_scale=tuple(map(on, row_scales)) if scaled else s,
                backend=backend.name, **options,
            )  # fmt: skip
        value.backward()
        return [value.detach().cpu(), x.grad, y.grad, bias.grad]

    expected, naive, actual = run(torch.float64, False), run(dtype, False), run(dtype, True)
    # At most 1.1 times 1.1 s of logits and gradients in each of the row's columns.
    terms = 1.3 * (N + M + 4)
    size = max(s, abs(b), 1.0)
    for name, *values in zip(("loss", "x", "y", "bias"), actual, expected, naive, strict=True):
        magnitude = terms * (size if name == "loss" else s if name in ("x", "y") else 1.0)
        if dtype.itemsize == 2 and (scaled or queued):  # as in test_family
            magnitude *= torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        assert_as_good(name, *values, dtype, magnitude=magnitude, rounding=4 + s)


def test_rows_and_the_paper(backend):
    x, y = (f.to(backend.device) for f in RAGGED.features(torch.float32)[:2])
    options = {"logit_scale": 8.0, "logit_bias": -4.0, "backend": backend.name}
    rows, cols = fused_siglip_loss(x, y, RAGGED.ids, reduction="none", **options)
    expected = _dense(x.double().cpu(), y.double().cpu(), RAGGED.ids, 8.0, -4.0)
    torch.testing.assert_close(rows.cpu().double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cols.cpu().double(), expected[1], rtol=1e-5, atol=1e-6)
    one_way = fused_siglip_loss(x, y, RAGGED.ids, image_to_text_weight=1.0, **options)
    paper = siglip_loss(x.double().cpu(), y.double().cpu(), *RAGGED.ids, scale=8.0, bias=-4.0)
    torch.testing.assert_close(one_way.cpu().double(), paper, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logit_bias": "0"}, TypeError, "logit_bias must be a number or a tensor, got str"),
        ({"logit_bias": float("nan")}, ValueError, "logit_bias must be finite, got nan"),
        ({"logit_bias": torch.ones(2)}, ValueError, r"logit_bias must be 0-d or of shape \[1\]"),
        ({"logit_bias": torch.tensor(1)}, TypeError, "logit_bias must be a floating-point tensor"),
        ({"logit_bias": torch.ones((), device="meta")}, ValueError, "logit_bias must be on the"),
        ({"soft_weight": 0.5}, TypeError, "takes no soft_weight"),
        ({"diagnostics": None}, TypeError, "takes no diagnostics"),
        ({"text_queue": torch.ones(3, 2)}, ValueError, "text_queue must have the dimension D"),
        ({"image_weights": torch.zeros(4)}, ValueError, "image_weights: expected a positive w"),
    ],
)
def test_bad_arguments(change, error, message):
    good = {"logit_scale": 5.0, "logit_bias": -1.0}
    with pytest.raises(error, match=message):
        fused_siglip_loss(torch.eye(4), torch.eye(4), **good | change)
