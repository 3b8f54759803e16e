"""The Lightning example trains, validates, predicts, saves and resumes, in one process and two."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from mxm_kernels import Folds, MFHLoss
from tests.examples.integrations.common import (
    EXPECTED_MFH,
    INSTANCES,
    WORLD,
    Items,
    rows,
    weights,
)
from tests.support.distributed import Towers
from tests.support.processes import as_torchrun, results

lightning = pytest.importorskip("pytorch_lightning")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def collate(items):
    images, texts, image_ids, text_ids = rows(items)
    return images, texts, Folds.from_ids(image_ids, text_ids)


class Losses(lightning.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen.append(outputs["loss"].item())


def trainer(folder, *callbacks, **options):
    options = {"max_epochs": 2, "enable_checkpointing": False, "devices": 1, **options}
    return lightning.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def module(loss=EXPECTED_MFH):
    from examples.integrations.lightning import DualEncoder

    return DualEncoder(Towers(), lr=0.03, loss=loss)


def batches(batch_size=INSTANCES // 2, **options):
    return DataLoader(Items(), batch_size=batch_size, collate_fn=collate, **options)


def test_it_learns(tmp_path):
    losses = Losses()
    loader = batches(INSTANCES, shuffle=True)
    trainer(tmp_path, losses, max_epochs=None, max_steps=40).fit(module(MFHLoss), loader)
    assert len(losses.seen) == 40
    assert losses.seen[-1] < 0.5 * losses.seen[0]


def test_it_validates_and_predicts(tmp_path):
    made, host = module(), trainer(tmp_path)
    (batch,) = batches(INSTANCES)
    with torch.no_grad():
        x, y, scale = made.encoders(*batch[:2])
    loss = EXPECTED_MFH()(x, y, batch[2], logit_scale=scale).item()
    ((metrics),) = host.validate(made, batches(INSTANCES), verbose=False)
    assert metrics["val_loss"] == pytest.approx(loss, rel=1e-6)
    ((images, texts),) = host.predict(made, batches(INSTANCES))
    assert torch.equal(images, x) and torch.equal(texts, y)
    host.fit(made, batches(), batches(INSTANCES))
    assert host.callback_metrics["val_loss"] < loss


def saved(folder, losses, step):
    """A run, with a checkpoint after so many of its four steps."""

    class Save(lightning.Callback):
        def on_train_batch_end(self, host, *_):
            if host.global_step == step:
                host.save_checkpoint(folder / "saved.ckpt")

    made = module()
    trainer(folder, losses, Save()).fit(made, batches())
    return made


def test_it_saves_and_resumes(tmp_path):
    whole, rest = Losses(), Losses()
    first, second = saved(tmp_path, whole, 2), module()
    path = tmp_path / "saved.ckpt"
    trainer(tmp_path, rest).fit(second, batches(), ckpt_path=path, weights_only=False)
    assert rest.seen == whole.seen[2:]
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


def shared(rank, world, folder):
    """Losses of two epochs, and of a validation: process r has every second instance."""
    options = {}
    if world > 1:
        as_torchrun(rank, world)
        options = {"devices": world, "strategy": "ddp"}
    losses, made = Losses(), module()
    host = trainer(folder, losses, **options)
    # One of its own would shuffle what it shares out.
    order = DistributedSampler(Items(), world, rank, shuffle=False)
    train = batches(INSTANCES // 2 // world, sampler=order)
    host.fit(made, train, batches(INSTANCES // world))
    assert (host.world_size, host.global_rank) == (world, rank)
    return losses.seen, host.callback_metrics["val_loss"].item(), weights(made)


def test_two_processes_have_the_losses_of_one(tmp_path):
    alone = shared(0, 1, tmp_path)
    for seen, validation, trained in results(WORLD, shared, tmp_path, timeout=200):
        assert len(seen) == 4
        assert seen == pytest.approx(alone[0], rel=1e-5)
        assert validation == pytest.approx(alone[1], rel=1e-5)
        for name, value in trained.items():
            torch.testing.assert_close(value, alone[2][name])
