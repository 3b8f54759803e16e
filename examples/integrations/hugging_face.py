"""MFH in the Trainer of transformers: a dual encoder whose batches bring their folds.

``images`` (M, ...) and ``texts`` (N, ...) are the model's inputs; ``image_ids`` and ``text_ids``
come with them from the data collator. Set ``remove_unused_columns=False``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from mxm_kernels import MFHLoss
from mxm_kernels.data import MultifoldBatchSampler


class MFHTrainer(Trainer):
    """``model(images, texts)`` gives normalised features of both and the logit scale.

    ``loss`` makes the criterion. Under several processes it is that of the rows of all of them.
    ``predict()``, and ``evaluate()`` with ``compute_metrics``, take one process: Trainer gathers
    as many rows of each as it has instances.
    """

    def __init__(self, *args: Any, loss: Callable[..., nn.Module] = MFHLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: Any = self.args.accelerator_config
        if config.dispatch_batches:
            raise ValueError(
                "accelerator_config: dispatch_batches must not be True, for texts would be cut "
                "where the images of a batch end"
            )
        self.accelerator.dataloader_config.dispatch_batches = False  # nor of iterable datasets
        self.criterion = loss(process_group=dist.group.WORLD if dist.is_initialized() else None)
        self.label_names = ["image_ids", "text_ids"]  # so evaluate() calls compute_loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """MFH of a batch."""
        x, y, logit_scale = model(inputs["images"], inputs["texts"])
        folds = inputs["image_ids"], inputs["text_ids"]
        loss = self.criterion(x, y, folds, logit_scale=logit_scale)
        outputs = {"image_features": x, "text_features": y}
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """Loss, features and ids of a batch."""
        if self.args.world_size > 1 and not prediction_loss_only:
            raise ValueError(
                "MFHTrainer gives features in one process only, got "
                f"{self.args.world_size}: Trainer would cut the rows of their last batch"
            )
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


class MultifoldTrainer(MFHTrainer):
    """The same for a dataset of instances, such as ``mxm_kernels.data.MultifoldDataset``."""

    def get_train_dataloader(self) -> DataLoader:
        """Batches of distinct instances; every epoch has its own order and draws."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        sampler = MultifoldBatchSampler(len(dataset), self._train_batch_size, seed=args.seed)
        self.remove_callback(_Epochs)
        self.add_callback(_Epochs(sampler))
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)  # shares the batches between processes


class _Epochs(TrainerCallback):
    """Trainer itself does not find the sampler where several processes resume in mid-epoch."""

    def __init__(self, sampler: MultifoldBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Choose the epoch, from that of the checkpoint on."""
        self.sampler.set_epoch(int(state.epoch or 0))
