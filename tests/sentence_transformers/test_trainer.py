"""The loss in the trainer of sentence-transformers itself, from the data set to the model card."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from mxm_kernels import InfoNCELoss, MFHLoss, SupConLoss
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.processes import results
from tests.support.sentences import (
    SYMMETRIC,
    bert_model,
    has_their_cache,
    logged,
    ranking_loss,
    texts,
    their_losses,
    trainer,
)


def table(*names, patterns=("a {}", "the small {}", "big old {}", "loud {}"), **more):
    return dict(zip(names, texts(*patterns), strict=False)) | more


PAIRS = table("anchor", "positive")
EXPECTED = partial(MultifoldLoss, loss=MFHLoss(rounds=None))  # without a draw
TRIPLETS = table("anchor", "positive", "negative")


@pytest.mark.parametrize("labelled", [False, True])
def test_their_trainer_trains_with_it(labelled, tmp_path):
    given = table("anchor", "positive", "other")
    if labelled:
        given["label"] = list(range(8))
    loss = SupConLoss() if labelled else None
    made = trainer(
        tmp_path,
        partial(MultifoldLoss, loss=loss, positives=2),
        given,
        max_steps=30,
        per_device_train_batch_size=8,
        logging_steps=5,
    )
    made.train()
    values = logged(made)
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("directions", [("query_to_doc",), SYMMETRIC], ids=str)
def test_with_hard_negatives_every_logged_loss_is_theirs(directions, tmp_path):
    mine = partial(
        MultifoldLoss, positives=1, directions=directions, partition_mode="per_direction"
    )
    theirs = partial(ranking_loss, directions=directions)
    runs = []
    for name, make in (("ours", mine), ("theirs", theirs)):
        run = trainer(tmp_path / name, make, TRIPLETS, eval_strategy="epoch")
        run.train()
        runs.append([*logged(run), *logged(run, "eval_loss")])
    assert len(runs[0]) == 6 and runs[0][-1] != runs[0][-2]
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def labels_in_batches(made):
    """The labels of a batch, sorted, and how many columns of tokens it has."""
    batch = next(iter(made.get_eval_dataloader()))
    columns, labels = made.collect_features(batch)
    return sorted(labels.tolist()), len(list(columns))


def test_an_id_column_is_renamed_to_label(tmp_path):
    numbers = [number // 2 for number in range(8)]
    given = PAIRS | {"label": numbers}
    labels, columns = labels_in_batches(trainer(tmp_path, EXPECTED, given))
    assert labels == numbers and columns == 2


def test_or_it_is_named_to_the_collator(tmp_path):
    numbers = [number // 2 for number in range(8)]
    made = trainer(tmp_path, EXPECTED, PAIRS | {"animal": numbers})
    made.data_collator.valid_label_columns.append("animal")
    labels, columns = labels_in_batches(made)
    assert labels == numbers and columns == 2
    renamed = trainer(tmp_path, EXPECTED, PAIRS | {"label": numbers})
    assert made.evaluate()["eval_loss"] == renamed.evaluate()["eval_loss"]
    assert (
        made.evaluate()["eval_loss"] != trainer(tmp_path, EXPECTED, PAIRS).evaluate()["eval_loss"]
    )


def test_a_column_of_scores_is_refused(tmp_path):
    made = trainer(tmp_path, MultifoldLoss, PAIRS | {"score": [0.5] * 8})
    with pytest.raises(TypeError, match="labels must hold integers, got dtype torch.float"):
        made.train()


def test_a_data_set_of_few_columns_is_refused(tmp_path):
    made = trainer(tmp_path, partial(MultifoldLoss, positives=2), PAIRS)
    with pytest.raises(ValueError, match="positives=2 needs 3 columns, the anchors first, got 2"):
        made.train()


def test_the_model_card_has_the_loss_and_whom_to_cite(tmp_path):
    loss = InfoNCELoss(label_smoothing=0.1)
    make = partial(MultifoldLoss, loss=loss, scale=30, positives=1, directions=("query_to_doc",))
    made = trainer(tmp_path, make, TRIPLETS)
    made.train()
    made.model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "loss:MultifoldLoss" in card
    assert "mxm_kernels.sentence_transformers.loss.MultifoldLoss" in card
    assert "InfoNCELoss(mask_false_negatives=True, label_smoothing=0.1, image_to" in card
    for line in ('"scale": 30.0', '"positives": 1', '"query_to_doc"\n', '"mini_batch_size": null'):
        assert line in card, line
    assert "eprint={2303.10839}" in card and "Ye Wang and Bowei Jiang" in card
    assert card.count("#### MultifoldLoss") == 1


def test_matryoshka_over_mini_batches_trains(tmp_path):
    if not has_their_cache():
        pytest.skip("this sentence-transformers has no CachedLossMixin")
    losses, values = their_losses(), []

    def make(size, model):
        inner = MultifoldLoss(model, MFHLoss(rounds=None), positives=1, mini_batch_size=size)
        return losses.MatryoshkaLoss(model, inner, matryoshka_dims=[16, 4])

    for size in (None, 3):
        torch.manual_seed(2)
        model = bert_model(tmp_path / str(size))
        made = trainer(
            tmp_path, partial(make, size), TRIPLETS, model=model, eval_strategy="epoch",
            learning_rate=1e-3, num_train_epochs=3,
        )  # fmt: skip
        made.train()
        values.append([*logged(made), *logged(made, "eval_loss")])
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert values[0][-1] < values[0][-3]
    made.model.save_pretrained(str(tmp_path / "saved"))
    assert "MXM-CLR" in (tmp_path / "saved" / "README.md").read_text()


def of_two_labels(folder, rank=0, world=1, gathers=False, **options):
    """Two epochs of two batches, over all processes; the labels make pairs of animals."""

    def make(model):
        group = dist.group.WORLD if world > 1 and not gathers else None
        loss = MFHLoss(rounds=None, process_group=group)
        return MultifoldLoss(model, loss, gather_across_devices=gathers and world > 1)

    given = PAIRS | {"label": [number // 2 for number in range(8)]}
    return trainer(folder, make, given, rank, world, **options)


def test_their_trainer_evaluates_saves_and_resumes(tmp_path):
    whole = of_two_labels(tmp_path, eval_strategy="epoch", save_strategy="steps", save_steps=1)
    whole.train()
    assert len(logged(whole)) == 4
    evaluated = logged(whole, "eval_loss")
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]
    for step in (1, 2, 3):
        resumed = of_two_labels(tmp_path / "again", eval_strategy="epoch")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert logged(resumed) == logged(whole)
        assert logged(resumed, "eval_loss")[-1] == evaluated[-1]


def trained_by_ranks(rank, world, folder, gathers):
    made = of_two_labels(folder / str(world), rank, world, gathers, eval_strategy="epoch")
    made.train()
    return logged(made), logged(made, "eval_loss")


@pytest.mark.parametrize("gathers", [False, True])
def test_their_trainer_on_two_processes_has_the_losses_of_one(tmp_path, gathers):
    alone = trained_by_ranks(0, 1, tmp_path, gathers)
    first, _ = results(2, trained_by_ranks, tmp_path, gathers, timeout=200)  # rank 0 keeps the log
    for mine, whole in zip(first, alone, strict=True):
        assert len(mine) >= 2
        assert mine == pytest.approx(whole, rel=1e-4)


def test_the_loss_may_be_handed_over_as_a_class(tmp_path):
    """The trainer makes it with the model alone."""
    made = trainer(tmp_path, lambda model: MultifoldLoss, PAIRS)
    made.train()
    assert type(made.loss) is MultifoldLoss and len(logged(made)) == 4
