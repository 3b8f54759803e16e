"""MFH in PyTorch Lightning: a dual encoder whose batches bring their folds.

A batch is images, texts and the :class:`mxm_kernels.Folds` of both, from the collate function;
Lightning moves folds to the device like a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from mxm_kernels import Folds, MFHLoss


class DualEncoder(LightningModule):
    """``encoders(images, texts)`` gives normalised features of both and the logit scale."""

    def __init__(self, encoders: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.encoders, self.criterion, self.lr = encoders, MFHLoss(), lr

    def training_step(self, batch: tuple[Tensor, Tensor, Folds], _: int) -> Tensor:
        """MFH of a batch."""
        images, texts, folds = batch
        x, y, logit_scale = self.encoders(images, texts)
        loss = self.criterion(x, y, folds, logit_scale=logit_scale)
        self.log("loss", loss, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
