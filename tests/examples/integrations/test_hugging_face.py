"""The Trainer example trains, evaluates, predicts, saves and resumes, in one process and two."""

import pytest
import torch

from tests.examples.integrations.common import (
    CAPTIONS,
    EXPECTED_MFH,
    INSTANCES,
    WORLD,
    Items,
    drawn,
    rows,
    weights,
)
from tests.support.distributed import Towers
from tests.support.processes import as_torchrun, results

pytest.importorskip("transformers")


def collate(items):
    names = "images", "texts", "image_ids", "text_ids"
    return dict(zip(names, rows(items), strict=True))


def collate_multifold(items):
    from mxm_kernels import data

    batch = data.collate_multifold(items)
    return {name: getattr(batch, name) for name in ("images", "texts", "image_ids", "text_ids")}


class KeywordTowers(Towers):
    """Takes whatever is in a batch, as many models of transformers do."""

    def forward(self, images, texts, **_):
        return super().forward(images, texts)


def trainer(folder, kind="MFHTrainer", model=Towers, data=Items, loss=EXPECTED_MFH, **options):
    from transformers import TrainingArguments

    from examples.integrations import hugging_face

    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": INSTANCES // 2,
        "per_device_eval_batch_size": INSTANCES // 2,
        "learning_rate": 0.03,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **options,
    }
    return getattr(hugging_face, kind)(
        model(),
        TrainingArguments(**arguments),
        data_collator=collate if data is Items else collate_multifold,
        train_dataset=data(),
        eval_dataset=data(),
        loss=loss,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_it_learns(tmp_path):
    from mxm_kernels import MFHLoss

    whole = {"per_device_train_batch_size": INSTANCES, "max_steps": 40, "logging_steps": 10}
    made = trainer(tmp_path, loss=MFHLoss, **whole)
    made.train()
    assert losses(made)[-1] < 0.5 * losses(made)[0]


@pytest.mark.parametrize("model", [Towers, KeywordTowers])
def test_it_evaluates_and_predicts(model, tmp_path):
    made = trainer(tmp_path, model=model, per_device_eval_batch_size=INSTANCES)
    data = Items()
    batch = collate([data[i] for i in range(INSTANCES)])
    with torch.no_grad():
        x, y, scale = made.model(batch["images"], batch["texts"])
    folds = batch["image_ids"], batch["text_ids"]
    loss = EXPECTED_MFH()(x, y, folds, logit_scale=scale).item()
    assert made.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    predicted = made.predict(data)
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    for got, wanted in zip(
        (*predicted.predictions, *predicted.label_ids), (x, y, *folds), strict=True
    ):
        assert torch.equal(torch.from_numpy(got), wanted)


class Stream(torch.utils.data.IterableDataset):
    """The same items one after the other, which Accelerate would dispatch from one process."""

    def __iter__(self):
        items = Items()
        return (items[index] for index in range(INSTANCES))


def test_no_text_is_cut(tmp_path):
    """A batch has twice as many texts as images."""
    made = trainer(tmp_path)
    predicted = made.predict(Stream())
    assert [len(side) for side in predicted.predictions] == [INSTANCES, INSTANCES * CAPTIONS]
    assert made.evaluate(Stream())["eval_loss"] == pytest.approx(made.evaluate()["eval_loss"])
    with pytest.raises(ValueError, match="dispatch_batches must not be True, for texts would be"):
        trainer(tmp_path, accelerator_config={"dispatch_batches": True})


def test_it_evaluates_in_every_epoch(tmp_path):
    def metrics(predicted):
        (x, y), (image_ids, text_ids) = predicted.predictions, predicted.label_ids
        return {"rows": len(x) + len(y), "ids": len(image_ids) + len(text_ids)}

    made = trainer(tmp_path, eval_strategy="epoch", save_strategy="epoch")
    made.compute_metrics = metrics
    made.train()
    logged = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2]
    assert logged[1]["eval_loss"] < logged[0]["eval_loss"]
    assert {entry["eval_rows"] for entry in logged} == {(1 + CAPTIONS) * INSTANCES}
    assert {entry["eval_ids"] for entry in logged} == {(1 + CAPTIONS) * INSTANCES}


KINDS = [("MFHTrainer", Items), ("MultifoldTrainer", drawn)]


@pytest.mark.parametrize(("kind", "data"), KINDS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_it_saves_and_resumes(kind, data, step, tmp_path):
    """At the end of an epoch of two steps, and in the middle of each."""
    whole = trainer(tmp_path, kind, data=data, save_strategy="steps", save_steps=1)
    whole.train()
    resumed = trainer(tmp_path / "again", kind, data=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert losses(resumed) == losses(whole)
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_every_epoch_has_its_own_batches_and_draws(tmp_path):
    seen = {}
    made = trainer(tmp_path, "MultifoldTrainer", data=drawn)
    compute = made.compute_loss

    def recorded(model, inputs, *arguments, **options):
        seen.setdefault(int(made.state.epoch), []).append(inputs["image_ids"].tolist())
        return compute(model, inputs, *arguments, **options)

    made.compute_loss = recorded
    made.train()
    assert sorted(seen) == [0, 1] and seen[0] != seen[1]
    for batches in seen.values():
        assert sorted(i for batch in batches for i in batch) == list(range(INSTANCES))


def shared(rank, world, folder):
    """Losses and weights of a run and a resumed one, and the loss of an evaluation."""
    if world > 1:
        as_torchrun(rank, world)
    share = {f"per_device_{name}_batch_size": INSTANCES // 2 // world for name in ("train", "eval")}
    seen = {}
    for kind, data in KINDS:
        path = folder / f"{kind}{world}"
        made = trainer(path, kind, data=data, save_strategy="steps", save_steps=3, **share)
        assert (made.args.world_size, made.args.process_index) == (world, rank)
        made.train()
        again = trainer(path / "again", kind, data=data, **share)
        again.train(resume_from_checkpoint=str(path / "checkpoint-3"))
        # The loss of an evaluation: MultifoldTrainer's is that of MFHTrainer.
        seen[kind] = losses(made), losses(again), made.evaluate()["eval_loss"]
        for name, value in weights(made.model).items():
            assert torch.equal(value, weights(again.model)[name]), name
    if world > 1:
        with pytest.raises(ValueError, match="features in one process only, got 2"):
            made.predict(made.eval_dataset)
    return seen


def test_two_processes_have_the_losses_of_one(tmp_path):
    alone = shared(0, 1, tmp_path)
    first, second = results(WORLD, shared, tmp_path, timeout=200)
    for kind, (trained, resumed, evaluated) in alone.items():
        assert len(trained) == 4
        assert first[kind][0] == pytest.approx(trained, rel=1e-5)
        assert first[kind][1] == pytest.approx(resumed, rel=1e-5)
        assert second[kind][2] == first[kind][2] == pytest.approx(evaluated, rel=1e-5)
