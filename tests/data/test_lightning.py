"""Lightning and Fabric with the batch sampler: they choose the epoch."""

import logging
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from mxm_kernels.data import MultifoldBatch, collate_multifold
from tests.data.common import (
    check_epochs,
    content,
    dataset,
    expected,
    loader,
    sampler,
)
from tests.support.processes import as_torchrun, results

lightning = pytest.importorskip("pytorch_lightning")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
WORLD = 2


class Recorder(lightning.LightningModule):
    """Keeps the batches of every epoch; ``made`` makes its loader in Lightning's hook."""

    def __init__(self, made=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.made = {}, made

    def train_dataloader(self):
        return self.made(self)

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).append(content(batch))
        return self.weight + 0 * batch.images.sum()

    def validation_step(self, batch, _):
        self.seen.setdefault("validation", []).append(content(batch))

    def predict_step(self, batch, _):
        return content(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    return lightning.Trainer(
        accelerator="cpu", devices=options.pop("devices", 1), default_root_dir=folder,
        **quiet, **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "persistent_workers": True}])
def test_one_process(options, tmp_path):
    module = Recorder()
    trainer(tmp_path).fit(module, loader(sampler(), **options), loader(sampler()))
    assert module.seen[0] == expected(0)
    assert module.seen[1] == expected(1)
    check_epochs([module.seen[0], module.seen[1]])
    assert len(module.seen["validation"]) == 8


def hook(**options):
    """What Lightning's hook returns; workers read ahead, so the epoch has to be known by then."""

    def made(module):
        order = sampler()
        order.set_epoch(module.trainer.fit_loop.epoch_progress.current.processed)
        return loader(order, **options)

    return made


def saved(folder, made, steps=None):
    """A checkpoint after so many of the four steps of an epoch, or at the end of the second."""
    path = folder / "saved.ckpt"

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == steps:
                trainer.save_checkpoint(path)

        def on_train_epoch_end(self, trainer, _):
            if steps is None:
                trainer.save_checkpoint(path)

    trainer(folder, callbacks=[Save()]).fit(Recorder(made))
    return path


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}])
def test_a_resumed_run_goes_on_with_its_epoch(options, tmp_path):
    module = Recorder(hook(**options))
    path = saved(tmp_path, hook(**options))
    trainer(tmp_path, max_epochs=4).fit(module, ckpt_path=path, weights_only=False)
    assert module.seen == {2: expected(2), 3: expected(3)}


def test_a_resumed_run_of_a_loader_from_outside(tmp_path):
    """Lightning makes the iterator before it chooses the epoch; workers have read ahead then."""
    path = saved(tmp_path, hook())
    module = Recorder()
    host = trainer(tmp_path, max_epochs=3)
    host.fit(module, loader(sampler()), ckpt_path=path, weights_only=False)
    assert module.seen == {2: expected(2)}
    host = trainer(tmp_path, max_epochs=3)
    message = r"set_epoch\(2\) came after the first batches of epoch 0 had been read"
    with pytest.warns(UserWarning, match=message):
        host.fit(module, loader(sampler(), num_workers=2), ckpt_path=path, weights_only=False)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}])
def test_a_stateful_loader_goes_on_in_mid_epoch(options, tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def made(module):
        return loader(sampler(), stateful.StatefulDataLoader, **options)

    path = saved(tmp_path, made, steps=6)
    module = Recorder(made)
    trainer(tmp_path, max_epochs=3).fit(module, ckpt_path=path, weights_only=False)
    assert module.seen == {1: expected(1)[2:], 2: expected(2)}


def test_predicting_says_what_to_do_and_does_it(tmp_path):
    host = trainer(tmp_path)
    with pytest.raises(TypeError, match=r"predict\(\) use DataLoader\(dataset, batch_size"):
        host.predict(Recorder(), loader(sampler()))
    whole = DataLoader(dataset(), batch_size=4, collate_fn=collate_multifold)
    assert host.predict(Recorder(), whole) == [content(batch) for batch in whole]


def shared(rank, world, folder):
    """Two epochs under DDP, with the error that Lightning's own sampler ends in, and Fabric's."""
    as_torchrun(rank, world)
    options = {"devices": world, "strategy": "ddp"}
    with pytest.raises(TypeError, match="use_distributed_sampler=False.*rank and num_replicas"):
        trainer(folder, **options).fit(Recorder(), loader(sampler()))

    def made(module):
        ranks = {"rank": module.global_rank, "num_replicas": module.trainer.world_size}
        return loader(sampler(**ranks, batch_size=2))

    module = Recorder(made)
    host = trainer(folder, use_distributed_sampler=False, **options)
    host.fit(module)
    assert (host.world_size, host.global_rank) == (world, rank)
    return [module.seen[epoch] for epoch in range(2)], fabric_epochs(rank, world)


def fabric_epochs(rank, world):
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=world)
    fabric.launch()
    ranks = {"rank": rank, "num_replicas": world}
    prepared = fabric.setup_dataloaders(
        loader(sampler(**ranks, batch_size=2)), use_distributed_sampler=False
    )
    return [[content(batch) for batch in prepared] for _ in range(2)]


def test_two_processes(tmp_path):
    ranks = results(WORLD, shared, tmp_path, timeout=120)
    for rank, (seen, fabric) in enumerate(ranks):
        ours = [expected(e, rank=rank, num_replicas=WORLD, batch_size=2) for e in range(2)]
        assert seen == ours
        check_epochs(seen, [ranks[1 - rank][0]])
        assert fabric == ours


def test_fabric_in_one_process():
    seen = fabric_epochs(0, 1)
    assert seen == [expected(epoch, batch_size=2) for epoch in range(2)]


def test_fabric_counts_from_zero():
    """A resumed run leaves the loader to itself."""
    from lightning_fabric import Fabric

    fabric, order = Fabric(accelerator="cpu", devices=1), sampler()
    prepared = fabric.setup_dataloaders(loader(order))
    order.resume(1, 2)
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) gives up .* batch 2 of"):
        assert [content(batch) for batch in prepared] == expected(0)
    order.resume(1, 2)
    batches = (fabric.to_device(batch) for batch in loader(order))
    assert [content(batch) for batch in batches] == expected(1)[2:]


def test_a_batch_moves_as_a_whole():
    from lightning_fabric.utilities.apply_func import move_data_to_device

    (batch, *_) = loader(sampler())
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, MultifoldBatch)
    assert {part.device.type for part in (moved.images, moved.texts, moved.image_ids)} == {"meta"}
    tables = moved.folds.tables(len(batch.images), len(batch.texts), torch.device("meta"))
    assert tables.pair_images.device.type == "meta"
