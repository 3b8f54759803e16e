"""The sigmoid statistics: batches, the dense computation, and the size of what is summed."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from mxm_kernels import Folds
from tests.support.cases import NAMED_CASES, Case

RAGGED = NAMED_CASES["ragged and shuffled"]
TILES = NAMED_CASES["several tiles and tails"]
CASES = {
    name: NAMED_CASES[name]
    for name in (
        "ragged and shuffled",
        "rows without positives",
        "a single instance",
        "one image",
        "pairs of CLIP",
        "several tiles and tails",
        "more columns than programs",
    )
}
CHUNKS = Case(tuple(i % 90 for i in range(70)), tuple(j // 6 for j in range(540)))
CASES["more than a chunk"] = CHUNKS
SCALARS = {  # scale and bias
    "SigLIP at its start": (10.0, -10.0),
    "far tails": (5.0, -25.0),
    "both signs": (40.0, 1.0),
}


def batch(backend, dtype=torch.float32, case=RAGGED, scalars=(10.0, -10.0)):
    """x, y, s, b as leaves, and the tables."""
    x, y, *_ = (f.to(backend.device) for f in case.features(dtype))
    tables = Folds.from_ids(*case.ids).to(backend.device).tables(len(x), len(y), x.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale, bias = (torch.tensor(v, dtype=wide, device=backend.device) for v in scalars)
    return [v.requires_grad_() for v in (x, y, scale, bias)], tables


def dense(leaves, tables):
    """The same statistics from the whole matrix, in the dtype of the leaves."""
    x, y, s, b = leaves
    S = s * (x @ y.T)
    positive = tables.image_groups[:, None] == tables.text_groups
    terms = softplus(S + b, threshold=40).masked_fill(positive, 0)
    pairs = S[tables.pair_images, tables.pair_texts]
    return torch.cat([terms.sum(1), terms.sum(0)]), torch.cat([pairs, pairs[tables.text_slots]])


def upstream_of(statistics) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(v.shape, generator=g, dtype=torch.float64) for v in statistics]


def differentiated(function, leaves):
    """The statistics of detached copies of ``leaves``, and their gradients."""
    leaves = [v.detach().clone().requires_grad_() for v in leaves]
    statistics = function(leaves)
    grads = [u.to(v) for u, v in zip(upstream_of(statistics), statistics, strict=True)]
    torch.autograd.backward(statistics, grads)
    return [*(v.detach() for v in statistics), *(v.grad for v in leaves)]


def magnitudes(leaves, tables) -> list[float]:
    """Size of the terms that each number sums: what bounds its rounding where terms cancel."""
    x, y, s, b = (v.detach() for v in leaves)
    t, S = tables, s * (x @ y.T)
    of_rows, of_positives = (u.abs() for u in upstream_of(dense(leaves, tables)))
    rows, cols = of_rows.split([len(x), len(y)])
    of_slots, of_texts = of_positives.split(t.pairs)
    positive = t.image_groups[:, None] == t.text_groups
    W = ((rows[:, None] + cols) * torch.sigmoid(S + b)).masked_fill(positive, 0)
    db = W.sum()
    W[t.pair_images, t.pair_texts] = of_slots + of_texts[t.slot_places]
    largest = s * (x.abs() @ y.abs().T)
    logits = softplus(S + b).masked_fill(positive, 0) * largest
    return [
        float(torch.cat([logits.sum(d) for d in (1, 0)]).norm()),
        float(largest[t.pair_images, t.pair_texts].norm()),
        float((s * W @ y.abs()).norm() * s),
        float((s * W.T @ x.abs()).norm() * s),
        float((W * largest).sum()),
        float(db * s),
    ]


NAMES = ("softplus_sum", "positives", "dx", "dy", "dscale", "dbias")
