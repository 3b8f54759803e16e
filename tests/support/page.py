"""A page's code as a script, and the gradients that every step of its optimisers saw.

``python -m tests.support.page SCRIPT`` writes them to ``rank_R.pt`` beside it, R being the rank.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import register_optimizer_step_post_hook


def main(script: Path) -> None:
    """Run the script; keep what its optimisers saw."""
    steps: list[list[Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After the step, since Lightning computes the gradients inside of it."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        steps.append([_whole(p.grad) for p in parameters if p.grad is not None])

    # A gradient that is cut to a length would hide that it is W times too long.
    torch.nn.utils.clip_grad_norm_ = lambda parameters, *_, **__: get_total_norm(
        [p.grad for p in parameters if p.grad is not None]
    )
    register_optimizer_step_post_hook(keep)
    torch.manual_seed(0)  # the same weights and data in any number of processes
    runpy.run_path(str(script), run_name="__main__")
    made = {"processes": int(os.environ["WORLD_SIZE"]), "steps": steps}
    torch.save(made, script.with_name(f"rank_{os.environ['RANK']}.pt"))


def _whole(grad: Tensor) -> Tensor:
    """A copy of the gradient; of one that is sharded, all of it."""
    return (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
