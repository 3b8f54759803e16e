"""Launches of one training step of every loss, ours on a GPU and plain PyTorch's.

    TRITON_INTERPRET=1 python -m bench.loss_launches [--out FILE]

Eager is what one writes down with PyTorch: the matrix S, and losses of its rows. A step is forward
and backward to both features and the scale, at any size that fits the workspace at once; see
``calls`` for how launches are counted without a GPU. Beside them the reads and writes of the M x N
plane that are in those launches: ours has one of dS, and two readings by the products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import mxm_kernels as mxm
from bench.calls import launches
from bench.markdown import table

INSTANCES, VIEWS, D = 6, 2, 16
FOLDS = mxm.Folds.uniform(VIEWS, VIEWS)
IDS = torch.arange(INSTANCES).repeat_interleave(VIEWS)
SAME = IDS[:, None] == IDS
OTHERS = SAME & ~torch.eye(len(IDS), dtype=torch.bool)
LABELS = torch.arange(len(IDS))
SIGNS = 2.0 * torch.eye(len(IDS)) - 1
SHARES = SAME / SAME.sum(1, keepdim=True)

Eager = Callable[[Tensor, Tensor | None], Tensor]  # (S, T) -> the loss


def _both(rows: Callable[[Tensor], Tensor]) -> Eager:
    """The mean of both directions."""
    return lambda S, T: (rows(S) + rows(S.T)) / 2


def _soft(S: Tensor, T: Tensor | None) -> Tensor:
    assert T is not None
    rows = -(T.softmax(1) * S.log_softmax(1)).sum(1).mean()
    return (rows - (T.T.softmax(1) * S.T.log_softmax(1)).sum(1).mean()) / 2


_ERASED = _both(lambda S: cross_entropy(S.masked_fill(OTHERS, -torch.inf), LABELS))
_EXPECTED = _both(
    lambda S: (
        (SHARES * (S.masked_fill(SAME, -torch.inf).logsumexp(1)[:, None] - S).exp().log1p())
        .sum(1)
        .mean()
    )
)
# name -> (ours, options, whether it takes a teacher, eager)
LOSSES: dict[str, tuple[Callable[..., Tensor], dict, bool, Eager]] = {
    "InfoNCE, pairs": (
        lambda x, y, **o: mxm.fused_info_nce_loss(x, y, **o),
        {},
        False,
        _both(lambda S: cross_entropy(S, LABELS)),
    ),
    "InfoNCE, false negatives masked": (
        lambda x, y, **o: mxm.fused_info_nce_loss(x, y, FOLDS, **o),
        {},
        False,
        _ERASED,
    ),
    "InfoNCE, unmasked": (
        lambda x, y, **o: mxm.fused_info_nce_loss(x, y, FOLDS, **o),
        {"mask_false_negatives": False},
        False,
        _both(lambda S: cross_entropy(S, LABELS)),
    ),
    "SupCon": (
        lambda x, y, **o: mxm.fused_supcon_loss(x, y, FOLDS, **o),
        {},
        False,
        _both(lambda S: -(SHARES * S.log_softmax(1)).sum(1).mean()),
    ),
    "SupCon, inside the logarithm": (
        lambda x, y, **o: mxm.fused_supcon_loss(x, y, FOLDS, **o),
        {"positives": "in"},
        False,
        _both(lambda S: (S.logsumexp(1) - S.masked_fill(~SAME, -torch.inf).logsumexp(1)).mean()),
    ),
    "decoupled": (
        lambda x, y, **o: mxm.fused_decoupled_loss(x, y, FOLDS, **o),
        {},
        False,
        _both(lambda S: (S.masked_fill(SAME, -torch.inf).logsumexp(1) - S.diagonal()).mean()),
    ),
    "SigLIP": (
        lambda x, y, **o: mxm.fused_siglip_loss(x, y, logit_bias=-5.0, **o),
        {},
        False,
        lambda S, T: -logsigmoid(SIGNS * (S - 5.0)).sum() / len(S),
    ),
    "hard, expectation": (
        lambda x, y, **o: mxm.fused_hard_loss(x, y, FOLDS, **o),
        {"rounds": None},
        False,
        _EXPECTED,
    ),
    "soft": (lambda x, y, **o: mxm.fused_soft_loss(x, y, FOLDS, **o), {}, True, _soft),
    "MFH, expectation": (
        lambda x, y, **o: mxm.fused_mfh_loss(x, y, FOLDS, **o),
        {"rounds": None},
        True,
        lambda S, T: 0.6 * _EXPECTED(S, T) + 0.4 * _soft(S, T),
    ),
}


def steps(name: str, backend: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One step of ours and of plain PyTorch, as functions that give the loss."""
    ours, options, teacher, eager = LOSSES[name]
    torch.manual_seed(0)
    x, y, a, b = (normalize(torch.randn(len(IDS), D)) for _ in range(4))
    s = torch.tensor(10.0)
    leaves = [v.requires_grad_() for v in (x, y, s)]
    given = {"teacher_image_features": a, "teacher_text_features": b} if teacher else {}

    def step(loss_of: Callable[[], Tensor]) -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of()
        loss.backward()
        return loss.detach()

    def fused() -> Tensor:
        return step(lambda: ours(x, y, logit_scale=s, backend=backend, **options, **given))

    def dense() -> Tensor:
        return step(lambda: eager(s * (x @ y.T), s.detach() * (a @ b.T) if teacher else None))

    return fused, dense


def counts(backend: str = "triton") -> dict[str, tuple[int, int]]:
    """Launches of a step of each loss, ours and eager."""
    found = {}
    for name in LOSSES:
        fused, dense = steps(name, backend)
        found[name] = launches(fused), launches(dense)
    return found


def page(found: dict[str, tuple[int, int]]) -> str:
    """The table."""
    rows = [[name, str(ours), str(eager)] for name, (ours, eager) in found.items()]
    return table(["loss", "launches, fused", "launches, eager"], rows) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    text = page(counts())
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
