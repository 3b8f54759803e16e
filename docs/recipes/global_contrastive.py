"""Global contrastive losses: the denominator of a row is an average over the whole training."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import Rows


# --8<-- [start:state]
class MovingAverage:
    """log u for both rows of each of K pairs of a data set; -inf before the first visit."""

    def __init__(
        self,
        pairs: int,
        gamma: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.log_u = torch.full((2, pairs), -torch.inf, device=device, dtype=dtype)
        self.gamma = gamma

    def update(self, samples: Tensor, log_g: Tensor) -> Tensor:
        """Return the new log u, (R,): u <- (1 - gamma) u + gamma g, u <- g at the first visit."""
        old, new = self.log_u[:, samples], log_g.detach().view(2, -1).to(self.log_u)
        kept, taken = old.new_tensor([1 - self.gamma, self.gamma]).log()
        mixed = torch.logaddexp(old + kept, new + taken)
        self.log_u[:, samples] = torch.where(old == -torch.inf, new, mixed)
        return self.log_u[:, samples].view(-1)


# --8<-- [end:state]


# --8<-- [start:sogclr]
def sogclr(rows: Rows, samples: Tensor, state: MovingAverage, rho: float = 0.0) -> Tensor:
    """SogCLR, and iSogCLR where each row has a scale; ``samples`` (M,) are the pairs' numbers."""
    log_g = rows.neg_lse - rows.positives - rows.num_negatives.log()
    log_u = state.update(samples, log_g)
    ratio = (log_g - log_u).exp()  # log_u has no gradient
    return rows.mean((log_u + rho + ratio - ratio.detach()) / rows.logit_scale)


# --8<-- [end:sogclr]
