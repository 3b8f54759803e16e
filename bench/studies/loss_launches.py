"""Launches of one training step of every loss, ours on a GPU and plain PyTorch's.

    TRITON_INTERPRET=1 python -m bench.studies.loss_launches [--out FILE]

Eager is what one writes down with PyTorch: the matrix S, and losses of its rows. A step is forward
and backward to both features and the scale, at any size that fits the workspace at once; see
``calls`` for how launches are counted without a GPU. Beside them how often eager reads a matrix of
the size of S, and the batch from which that costs more than launches that it spares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import mxm_kernels as mxm
from bench.calls import launches, readings
from bench.markdown import table

INSTANCES, VIEWS, D = 6, 2, 16
FOLDS = mxm.Folds.uniform(VIEWS, VIEWS)
IDS = torch.arange(INSTANCES).repeat_interleave(VIEWS)
SAME = IDS[:, None] == IDS
ITSELF = torch.eye(len(IDS), dtype=torch.bool)
OTHERS = SAME & ~ITSELF
LABELS = torch.arange(len(IDS))
SIGNS = 2.0 * torch.eye(len(IDS)) - 1
SHARES = SAME / SAME.sum(1, keepdim=True)
SCALE, PRIOR = 10.0, 0.02

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


def _joint(S: Tensor) -> Tensor:
    return (S.logsumexp(1) - S.masked_fill(~SAME, -torch.inf).logsumexp(1)).mean()


def _debiased(S: Tensor) -> Tensor:
    others, e = ~SAME, S.exp()
    excess = PRIOR * (e * SAME).sum(1) / SAME.sum(1)
    g = ((e * others).sum(1) / others.sum(1) - excess) / (1 - PRIOR)
    g = others.sum(1) * torch.maximum(g, torch.tensor(-SCALE).exp())
    return ((S.diagonal().exp() + g).log() - S.diagonal()).mean()


def _cwcl(S: Tensor, T: Tensor | None) -> Tensor:
    assert T is not None
    w = (1 + T / SCALE) / 2
    rows = ((w * S.log_softmax(1)).sum(1) / w.sum(1)).mean()
    return -(rows + ((w * S.log_softmax(0)).sum(0) / w.sum(0)).mean()) / 2


def _of_others(S: Tensor, T: Tensor | None) -> Tensor:
    """Inside one modality: a row is no other of itself."""
    n = S.masked_fill(SAME, -torch.inf).logsumexp(1)[:, None]
    return ((OTHERS * (n - S).exp().log1p()).sum(1) / OTHERS.sum(1)).mean()


def _unmasked_of_others(S: Tensor, T: Tensor | None) -> Tensor:
    rows = S.masked_fill(ITSELF, -torch.inf).log_softmax(1)
    return -((OTHERS * rows.masked_fill(ITSELF, 0)).sum(1) / OTHERS.sum(1)).mean()


def _soft_of_others(S: Tensor, T: Tensor | None) -> Tensor:
    shares = S.detach().masked_fill(ITSELF, -torch.inf).softmax(1)
    rows = S.masked_fill(ITSELF, -torch.inf).log_softmax(1)
    return -(shares * rows.masked_fill(ITSELF, 0)).sum(1).mean()


def _soft_intra_modal(x: Tensor, y: Tensor, **options) -> Tensor:
    return mxm.fused_intra_modal_loss(
        x, VIEWS, soft_weight=1.0, teacher_features=x.detach(), **options
    )


class Loss(NamedTuple):
    """One line of the table."""

    ours: Callable[..., Tensor]  # (x, y, options) -> the loss
    eager: Eager
    teacher: bool = False
    own_teacher: bool = False  # eager reads T = S, detached
    one_side: bool = False  # y is x


def _with_folds(loss: Callable[..., Tensor], **fixed) -> Callable[..., Tensor]:
    return lambda x, y, **o: loss(x, y, FOLDS, **fixed, **o)


LOSSES = {
    "InfoNCE, pairs": Loss(mxm.fused_info_nce_loss, _both(lambda S: cross_entropy(S, LABELS))),
    "InfoNCE, false negatives masked": Loss(_with_folds(mxm.fused_info_nce_loss), _ERASED),
    "InfoNCE, unmasked": Loss(
        _with_folds(mxm.fused_info_nce_loss, mask_false_negatives=False),
        _both(lambda S: cross_entropy(S, LABELS)),
    ),
    "SupCon": Loss(
        _with_folds(mxm.fused_supcon_loss),
        _both(lambda S: -(SHARES * S.log_softmax(1)).sum(1).mean()),
    ),
    "SupCon, inside the logarithm": Loss(
        _with_folds(mxm.fused_supcon_loss, positives="in"), _both(_joint)
    ),
    "decoupled": Loss(
        _with_folds(mxm.fused_decoupled_loss),
        _both(lambda S: (S.masked_fill(SAME, -torch.inf).logsumexp(1) - S.diagonal()).mean()),
    ),
    "debiased": Loss(_with_folds(mxm.fused_debiased_loss, positive_prior=PRIOR), _both(_debiased)),
    "SigLIP": Loss(
        lambda x, y, **o: mxm.fused_siglip_loss(x, y, logit_bias=-5.0, **o),
        lambda S, T: -logsigmoid(SIGNS * (S - 5.0)).sum() / len(S),
    ),
    "hard, expectation": Loss(_with_folds(mxm.fused_hard_loss, rounds=None), _EXPECTED),
    "soft": Loss(_with_folds(mxm.fused_soft_loss), _soft, teacher=True),
    "MFH, expectation": Loss(
        _with_folds(mxm.fused_mfh_loss, rounds=None),
        lambda S, T: 0.6 * _EXPECTED(S, T) + 0.4 * _soft(S, T),
        teacher=True,
    ),
    "self-distillation of every row": Loss(
        _with_folds(mxm.fused_self_distillation_loss, soft_share=1.0), _soft, own_teacher=True
    ),
    "CWCL": Loss(mxm.fused_cwcl_loss, _cwcl, teacher=True),
    "intra-modal": Loss(
        lambda x, y, **o: mxm.fused_intra_modal_loss(x, VIEWS, **o), _of_others, one_side=True
    ),
    "intra-modal, unmasked": Loss(
        lambda x, y, **o: mxm.fused_intra_modal_loss(x, VIEWS, mask_positives=False, **o),
        _unmasked_of_others,
        one_side=True,
    ),
    "intra-modal, soft": Loss(_soft_intra_modal, _soft_of_others, one_side=True),
}


def steps(name: str, backend: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One step of ours and of plain PyTorch, as functions that give the loss."""
    torch.manual_seed(0)
    x, y, a, b = (normalize(torch.randn(len(IDS), D)) for _ in range(4))
    s = torch.tensor(SCALE)
    loss = LOSSES[name]
    leaves = [v.requires_grad_() for v in (x, y, s)]
    y = x if loss.one_side else y
    given = {"teacher_image_features": a, "teacher_text_features": b} if loss.teacher else {}

    def step(loss_of: Callable[[], Tensor]) -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss_of()
        value.backward()
        return value.detach()

    def fused() -> Tensor:
        return step(lambda: loss.ours(x, y, logit_scale=s, backend=backend, **given))

    def eager() -> Tensor:
        S = s * (x @ y.T)
        T = s.detach() * (a @ b.T) if loss.teacher else None
        return loss.eager(S, S.detach() if loss.own_teacher else T)

    return fused, lambda: step(eager)


class Counted(NamedTuple):
    """Of one step."""

    ours: int  # launches
    eager: int
    readings: int  # of matrices as large as S, by eager


def _options() -> dict[str, dict[str, Any]]:
    """One option each, and for those that need another run of the operator, what they need."""
    rows, queue = len(IDS), normalize(torch.randn(5, D))
    weights, alike = torch.rand(rows), torch.rand(int(SAME.sum()))
    return {
        "image_weights": {"image_weights": weights},
        "image_weights and text_weights": {"image_weights": weights, "text_weights": weights},
        "pair_weights": {"pair_weights": (alike, alike)},
        "image_to_text_weight": {"image_to_text_weight": 0.75},
        "teacher_logit_scale": {"teacher_logit_scale": 5.0},
        "teacher_dtype": {"teacher_dtype": torch.float8_e4m3fn},
        'reduction="none"': {"reduction": "none"},
        "diagnostics": {"diagnostics": mxm.Diagnostics()},
        "label_smoothing": {"label_smoothing": 0.1},
        "a scale for each row": {"logit_scale": (torch.rand(rows) + 9, torch.rand(rows) + 9)},
        "text_queue": {"text_queue": queue},
        "both queues": {"text_queue": queue, "image_queue": queue},
        "rounds=10": {"rounds": 10},
    }


def option_counts(backend: str = "triton") -> dict[str, int]:
    """Launches of a step of MFH in expectation, alone and with each option."""
    torch.manual_seed(0)
    x, y, a, b = (normalize(torch.randn(len(IDS), D)) for _ in range(4))
    s = torch.tensor(SCALE)
    leaves = [v.requires_grad_() for v in (x, y, s)]
    given = {"teacher_image_features": a, "teacher_text_features": b, "rounds": None}

    def step(options: dict[str, Any]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for leaf in leaves:
                leaf.grad = None
            call = {"logit_scale": s, "backend": backend, **given, **options}
            losses = mxm.fused_mfh_loss(x, y, FOLDS, **call)
            value = losses if isinstance(losses, Tensor) else torch.cat(losses).sum()
            value.backward()
            return value.detach()

        return run

    found = {"none": launches(step({}))}
    return found | {name: launches(step(options)) for name, options in _options().items()}


def counts(backend: str = "triton") -> dict[str, Counted]:
    """Launches of a step of each loss, ours and eager, and what eager reads."""
    found = {}
    for name in LOSSES:
        fused, dense = steps(name, backend)
        found[name] = Counted(launches(fused), launches(dense), readings(dense, len(IDS) ** 2))
    return found


# A launch, and what an H100 copies in a second (measured: 3.0 TB/s).
LAUNCH_SECONDS, BYTES_PER_SECOND = 5e-6, 3.0e12


def crossover(c: Counted) -> int | None:
    """Pairs on each side up to which eager may be faster; None: at no number of them.

    From there eager's traffic costs more than what our launches cost beyond its own.

    Eager's writings are left out, and ours are its three of dS, so it is an upper bound.
    """
    if c.ours <= c.eager:
        return None
    saved = (c.readings - 3) * 4 / BYTES_PER_SECOND
    return int(((c.ours - c.eager) * LAUNCH_SECONDS / saved) ** 0.5)


def page(found: dict[str, Counted], options: dict[str, int]) -> str:
    """The tables: of every loss, and of every option."""
    heads = ["loss", "kernel launches", "launches of eager", "times that eager reads S"]
    heads += ["eager may be faster up to"]
    rows = []
    for name, c in found.items():
        at = crossover(c)
        crossed = "no size" if at is None else f"{round(at, -2):,} x {round(at, -2):,}"
        rows.append([name, str(c.ours), str(c.eager), str(c.readings), crossed])
    of_options = [[name, str(n), str(n - options["none"])] for name, n in options.items()]
    heads_of_options = ["option of MFH with `rounds=None`", "kernel launches", "more than without"]
    return f"{table(heads, rows)}\n\n{table(heads_of_options, of_options)}\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    text = page(counts(), option_counts())
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
