"""MFH in PyTorch Lightning: a dual encoder whose batches bring their folds.

A batch is images, texts and the :class:`mxm_kernels.Folds` of both, from the collate function;
Lightning moves folds to the device like a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from mxm_kernels import Folds, MFHLoss

Batch = tuple[Tensor, Tensor, Folds]


class DualEncoder(LightningModule):
    """``encoders(images, texts)`` gives normalised features of both and the logit scale.

    ``loss`` makes the criterion. Under several processes it is that of the rows of all of them.
    """

    def __init__(
        self, encoders: nn.Module, lr: float = 1e-3, loss: Callable[..., nn.Module] = MFHLoss
    ) -> None:
        super().__init__()
        self.encoders, self.lr, self.loss = encoders, lr, loss
        self.criterion = loss()

    def setup(self, stage: str) -> None:
        """Give the criterion the process group, which is there by now."""
        if dist.is_initialized():
            self.criterion = self.loss(process_group=dist.group.WORLD)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """MFH of a batch."""
        loss = self._loss(batch)
        self.log("loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """The same of a batch that is not trained on."""
        self.log("val_loss", self._loss(batch), batch_size=len(batch[0]), sync_dist=True)

    def predict_step(self, batch: Batch, _: int) -> tuple[Tensor, Tensor]:
        """Features of both sides."""
        x, y, _ = self.encoders(*batch[:2])
        return x, y

    def _loss(self, batch: Batch) -> Tensor:
        images, texts, folds = batch
        x, y, logit_scale = self.encoders(images, texts)
        return self.criterion(x, y, folds, logit_scale=logit_scale)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
