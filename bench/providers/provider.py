"""What a provider is: a name, a loss, what it cannot compute, and how one step of it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.batch import Batch, Selection
from bench.cases import Case

Mark = Callable[[], None]
Step = Callable[[Mark], Tensor]  # forward, mark, backward; gradients are in the batch's leaves


def _draw(batch: Batch) -> Selection:
    return batch.draw()


def _nothing(case: Case, device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """One implementation of the loss.

    A step draws and then computes. ``draw`` has to give, from the same state of torch's
    generator, the selection that the step used: that is how the gate checks the very code
    that is timed. ``loss`` gets a selection if ``draws_outside``, else it draws inside.
    """

    name: str
    loss: Callable[..., Tensor]
    draw: Callable[[Batch], Selection] = _draw
    draws_outside: bool = True
    refuses: Callable[[Case, torch.device], str | None] = _nothing  # why not, None: it can
    workspace: Callable[[Case], int] = lambda case: 0  # about how many bytes it needs
    scale_gradient: bool = True  # whether the scale is differentiated
    phases: bool = True  # whether forward and backward can be told apart

    def prepare(self, batch: Batch) -> Step:
        """The step for a batch; what is done once, is done here."""

        def step(mark: Mark) -> Tensor:
            loss = self.loss(batch, self.draw(batch)) if self.draws_outside else self.loss(batch)
            mark()
            loss.backward()
            return loss.detach()

        return step
