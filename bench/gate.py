"""No timing without a right answer: a step's value and gradients against a float64 reference.

The reference is reference/mfh.py where its Python loop over rows is affordable, else the
chunked float64 computation of bench/providers/chunked.py, which tests/bench holds to it. The
bound is the tests' own: tests/support/compare.py, with the naive error that of the chunked
computation in the dtype under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.batch import Batch, Selection
from bench.providers import Provider
from bench.providers.chunked import chunked_mfh
from bench.providers.provider import Step
from bench.providers.sigmoid import chunked_sigmoid
from reference.mfh import mfh_loss
from tests.support.compare import allowed, error

NAIVE_LIMIT = 2e7  # every round of every row of the reference differentiates an M x N matrix
SEED = 1

Answer = dict[str, Tensor]  # loss and gradients by name


class WrongAnswerError(AssertionError):
    """A provider's loss or gradient is farther from the reference than its dtype explains."""


@dataclass
class Gate:
    """The reference of one batch; answers to the same draw are computed once.

    The naive error only widens the bound, so it is not computed for an answer that needs no
    wider one.
    """

    batch: Batch
    _exact: list[tuple[Selection, Answer]] = field(default_factory=list)
    _naive: list[tuple[Selection, Answer]] = field(default_factory=list)

    def check(self, provider: Provider, batch: Batch, step: Step) -> dict:
        """Run ``step`` once and hold it to the reference; errors and bounds for the record.

        Raises:
            WrongAnswerError: it is not as good as its dtype allows.
        """
        batch.clear()
        torch.manual_seed(SEED)
        loss = step(lambda: None)
        answer = _answer(batch, loss, provider.scale_gradient)
        torch.manual_seed(SEED)
        selection = provider.draw(batch)
        batch.clear()
        exact = _once(self._exact, selection, self._compute_exact)
        errors = {}
        for name, value in answer.items():
            size = float(exact[name].norm())
            wrong = error(value, exact[name])
            limit = allowed(self.batch.x.dtype, size, 0.0)
            if not wrong <= limit:
                naive = _once(self._naive, selection, self._compute_naive)
                limit = allowed(self.batch.x.dtype, size, error(naive[name], exact[name]))
            errors[name] = {"error": wrong, "allowed": limit, "norm": size}
            if not wrong <= limit:
                raise WrongAnswerError(
                    f"{name}: error {wrong:.3g} of {size:.3g}, allowed {limit:.3g}"
                )
        return {"against": self.source, "errors": errors}

    @property
    def source(self) -> str:
        """Which reference is used."""
        return "reference/mfh.py" if self._affordable else "chunked float64"

    @property
    def _affordable(self) -> bool:
        case = self.batch.case
        if case.sigmoid:
            return False
        rounds = case.views + case.captions if case.rounds is None else case.rounds
        return (case.M + case.N) * rounds * case.M * case.N <= NAIVE_LIMIT

    def _compute_exact(self, selection: Selection) -> Answer:
        wide = self.batch.with_leaves(torch.float64)
        loss = _dense(wide, selection) if self._affordable else _chunked(wide, selection)
        loss.backward()
        return _answer(wide, loss)

    def _compute_naive(self, selection: Selection) -> Answer:
        narrow = self.batch.with_leaves()
        loss = _chunked(narrow, selection)
        loss.backward()
        return _answer(narrow, loss)


def _chunked(batch: Batch, selection: Selection) -> Tensor:
    """The loss of the case, by the computation in blocks."""
    return chunked_sigmoid(batch) if batch.case.sigmoid else chunked_mfh(batch, selection)


def _once(
    known: list[tuple[Selection, Answer]],
    selection: Selection,
    compute: Callable[[Selection], Answer],
) -> Answer:
    """The answer to a draw, computed if it is not ``known`` yet."""
    for drawn, answer in known:
        if all(torch.equal(a, b) for a, b in zip(drawn, selection, strict=True)):
            return answer
    known.append((selection, compute(selection)))
    return known[-1][1]


def _answer(batch: Batch, loss: Tensor, scale_gradient: bool = True) -> Answer:
    """The loss and the gradients in the leaves; a leaf without gradient counts as zero."""
    answer = {"loss": loss.detach()}
    for name, leaf in batch.leaves.items():
        if name != "scale" or scale_gradient:
            answer[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
    return answer


def _dense(batch: Batch, selection: Selection) -> Tensor:
    """reference/mfh.py on the CPU; gradients come back to the batch's leaves."""
    x, y, scale = batch.x.cpu(), batch.y.cpu(), batch.scale.cpu()
    tx, ty = batch.teacher_x, batch.teacher_y
    loss = mfh_loss(
        x,
        y,
        batch.image_ids.cpu(),
        batch.text_ids.cpu(),
        scale=scale,
        teacher_x=None if tx is None else tx.cpu(),
        teacher_y=None if ty is None else ty.cpu(),
        teacher_scale=scale.detach(),
        selection=None if batch.case.rounds is None else (selection[0].cpu(), selection[1].cpu()),
    )
    assert isinstance(loss, Tensor)
    return loss
