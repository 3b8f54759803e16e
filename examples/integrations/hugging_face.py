"""MFH in the Trainer of transformers: a dual encoder whose batches bring their folds.

``images`` (M, ...) and ``texts`` (N, ...) are the model's inputs; ``image_ids`` and ``text_ids``
come with them from the data collator. Set ``remove_unused_columns=False``.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from mxm_kernels import MFHLoss


class MFHTrainer(Trainer):
    """``model(images, texts)`` gives normalised features of both and the logit scale."""

    criterion = MFHLoss()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """MFH of a batch."""
        x, y, logit_scale = model(inputs["images"], inputs["texts"])
        folds = inputs["image_ids"], inputs["text_ids"]
        loss = self.criterion(x, y, folds, logit_scale=logit_scale)
        outputs = {"image_features": x, "text_features": y}
        return (loss, outputs) if return_outputs else loss
