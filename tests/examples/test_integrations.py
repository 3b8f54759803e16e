"""The examples train: the loss of two towers on fixed data goes down."""

import pytest
import torch
from torch.utils.data import DataLoader

from mxm_kernels import Folds
from tests.support.distributed import D_IN, Towers

CAPTIONS = 2


class Items(torch.utils.data.Dataset):
    """Eight instances: an image and two captions, vectors that have something in common."""

    def __init__(self):
        self.images = torch.randn(8, D_IN)
        self.texts = self.images[:, None] + 0.1 * torch.randn(8, CAPTIONS, D_IN)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.images[index], self.texts[index], index


def rows(items):
    images, texts, ids = zip(*items, strict=True)
    image_ids = torch.tensor(ids)
    return torch.stack(images), torch.cat(texts), image_ids, image_ids.repeat_interleave(CAPTIONS)


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    from examples.integrations.hugging_face import MFHTrainer

    def collate(items):
        names = "images", "texts", "image_ids", "text_ids"
        return dict(zip(names, rows(items), strict=True))

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=0.03,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = MFHTrainer(Towers(), arguments, data_collator=collate, train_dataset=Items())
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.5 * logged[0]


def test_lightning(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    from examples.integrations.lightning import DualEncoder

    def collate(items):
        images, texts, image_ids, text_ids = rows(items)
        return images, texts, Folds.from_ids(image_ids, text_ids)

    class Losses(lightning.Callback):
        seen = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            self.seen.append(outputs["loss"].item())

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=40,
        callbacks=[Losses()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(Items(), batch_size=8, shuffle=True, collate_fn=collate)
    trainer.fit(DualEncoder(Towers(), lr=0.03), loader)
    assert len(Losses.seen) == 40
    assert Losses.seen[-1] < 0.5 * Losses.seen[0]
