"""What open_clip's losses have in common: their constructor, and its options over several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mxm_kernels.checks import as_count
from mxm_kernels.distributed.ranks import world_group

# How open_clip's SigLipLoss passes texts among ranks, and the ``gather`` of this package that does.
DIST_IMPLS: dict[str, Literal["all", "ring"]] = {
    "bidir": "ring",
    "shift": "ring",
    "reduce": "all",
    "gather": "all",
}


class Gathered(nn.Module):
    """The constructor of open_clip's losses, and what its options mean over several ranks."""

    def __init__(
        self,
        local_loss=False,
        gather_with_grad=False,
        cache_labels=False,
        rank=0,
        world_size=1,
        use_horovod=False,
    ):
        super().__init__()
        if use_horovod:
            raise ValueError(
                "use_horovod must be False: the features are gathered by torch.distributed; start "
                "the ranks with torchrun instead of horovodrun"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = as_count("rank", rank, 0)
        self.world_size = as_count("world_size", world_size)
        self.use_horovod = use_horovod

    def _group(self) -> Any:
        """torch.distributed's default group, or None in one process."""
        return world_group(self.rank, self.world_size) if self.world_size > 1 else None

    def _over_ranks(
        self, function: Callable[..., Any], x: Tensor, y: Tensor, scale: Any, **options: Any
    ) -> Tensor:
        """The value and the gradients of the table in ``losses``."""
        if self.world_size == 1:
            return function(x, y, logit_scale=scale, **options)
        options["process_group"] = self._group()
        if not self.local_loss:
            if not self.gather_with_grad:
                x, y = _divide_gradient(x, self.world_size), _divide_gradient(y, self.world_size)
            return function(x, y, logit_scale=scale, **options)
        options["reduction"] = "none"
        if self.gather_with_grad:
            rows, columns = function(x, y, logit_scale=scale, **options)
        else:
            rows, _ = function(x, y.detach(), logit_scale=scale, **options)
            _, columns = function(x.detach(), y, logit_scale=scale, **options)
        return (rows.mean() + columns.mean()) / 2


def no_gradient(logit_bias: object) -> Tensor | float:
    """0, as part of the graph: DDP expects a gradient of every parameter."""
    if isinstance(logit_bias, Tensor):
        return 0.0 * logit_bias.sum()
    if logit_bias is None or (isinstance(logit_bias, (int, float)) and logit_bias == logit_bias):
        return 0.0
    raise TypeError(f"logit_bias must be a number, a tensor or None, got {logit_bias!r}")


def check_teacher(*tensors: object) -> None:
    """``dist_image_features``, ``dist_text_features``, ``dist_logit_scale``: none is trained."""
    names = "dist_image_features", "dist_text_features", "dist_logit_scale"
    for name, value in zip(names, tensors, strict=True):
        if torch.is_grad_enabled() and isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and a teacher gets none: compute it under "
                "torch.no_grad(), as open_clip's program does, or detach it"
            )


def _divide_gradient(features: Tensor, world_size: int) -> Tensor:
    if not features.requires_grad:
        return features
    features = features.view_as(features)
    features.register_hook(lambda gradient: gradient / world_size)
    return features
