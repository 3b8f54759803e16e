"""The loss in the trainer of sentence-transformers itself."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from mxm_kernels import (
    CWCLLoss,
    InfoNCELoss,
    IntraModalLoss,
    MFHLoss,
    SigLipLoss,
    SupConLoss,
    fused_mfh_loss,
)
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.processes import as_torchrun, results

ANIMALS = ["cat", "dog", "horse", "cow", "duck", "goose", "mouse", "fox"]


def embedded(column):
    return {"sentence_embedding": column["rows"]}


def columns(count=3, rows=6):
    return [{"rows": torch.randn(rows, 8, requires_grad=True)} for _ in range(count)]


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 3, 1, 2, 1, 9])])
def test_it_is_the_loss_of_the_columns(labels):
    given = columns()
    value = MultifoldLoss(embedded, MFHLoss(rounds=None), scale=7.0)(given, labels)
    ids = torch.arange(6) if labels is None else labels
    x, *y = (normalize(column["rows"], dim=1) for column in given)
    folds = ids, torch.cat([ids, ids])
    expected = fused_mfh_loss(x, torch.cat(y), folds, logit_scale=7.0, rounds=None)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(column["rows"].grad.abs().sum() > 0 for column in given)


def test_one_positive_is_their_symmetric_loss():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    given = columns(2)
    theirs = losses.MultipleNegativesRankingLoss(
        None,
        scale=20.0,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    expected = theirs.compute_loss_from_embeddings([c["rows"] for c in given], None)
    value = MultifoldLoss(embedded, InfoNCELoss())(given)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def shard(rank, world):
    given = [{"rows": c["rows"].detach()[rank * 3 : rank * 3 + 3]} for c in columns()]
    return MultifoldLoss(embedded, MFHLoss(rounds=None, process_group=dist.group.WORLD))(given)


def test_rows_of_two_ranks_are_instances_of_their_own():
    expected = MultifoldLoss(embedded, MFHLoss(rounds=None))(columns())
    for value in results(2, shard):
        torch.testing.assert_close(value, expected.detach())


def test_errors():
    with pytest.raises(ValueError, match="one or more of positives, got 1"):
        MultifoldLoss(embedded)(columns(1))
    with pytest.raises(TypeError, match="labels must hold integers"):
        MultifoldLoss(embedded)(columns(), torch.rand(6))


@pytest.mark.parametrize("loss", ["mfh", SigLipLoss(), CWCLLoss(), IntraModalLoss(), MFHLoss])
def test_a_loss_that_takes_other_arguments(loss):
    with pytest.raises(TypeError, match="loss must be a module that is called with features of"):
        MultifoldLoss(embedded, loss)


def made_model():
    st = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    with warnings.catch_warnings():  # newer versions have it elsewhere too
        warnings.simplefilter("ignore", DeprecationWarning)
        from sentence_transformers.models import StaticEmbedding

    words = ["[UNK]", "a", "the", "small", "big", "old", *ANIMALS]
    word_level = tokenizers.models.WordLevel({w: k for k, w in enumerate(words)}, "[UNK]")
    tokenizer = tokenizers.Tokenizer(word_level)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    embedding = StaticEmbedding(tokenizer, embedding_dim=8)
    return st.SentenceTransformer(modules=[embedding], device="cpu")


model = pytest.fixture(made_model, name="model")


@pytest.mark.parametrize("labelled", [False, True])
def test_their_trainer_trains_with_it(model, labelled, tmp_path):
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    table = {
        "anchor": [f"a {animal}" for animal in ANIMALS],
        "positive": [f"the small {animal}" for animal in ANIMALS],
        "other": [f"big old {animal}" for animal in ANIMALS],
    }
    if labelled:
        table["label"] = list(range(8))
    loss = MultifoldLoss(model, SupConLoss() if labelled else None)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=30,
            per_device_train_batch_size=8,
            learning_rate=0.05,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=datasets.Dataset.from_dict(table),
        loss=loss,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.5 * logged[0]


def their_trainer(folder, rank=0, world=1, **options):
    """Two epochs of two batches, over all processes; the labels make pairs of animals."""
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    if world > 1:
        as_torchrun(rank, world)
    torch.manual_seed(3)
    model = made_model()
    table = {
        "anchor": [f"a {animal}" for animal in ANIMALS],
        "positive": [f"the small {animal}" for animal in ANIMALS],
        "label": [number // 2 for number in range(8)],
    }
    given = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4 // world,
        per_device_eval_batch_size=8 // world,
        learning_rate=0.05,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    assert (given.world_size, given.process_index) == (world, rank)
    group = dist.group.WORLD if world > 1 else None
    data = datasets.Dataset.from_dict(table)
    loss = MultifoldLoss(model, MFHLoss(rounds=None, process_group=group))
    return SentenceTransformerTrainer(
        model=model, args=given, train_dataset=data, eval_dataset=data, loss=loss
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_their_trainer_evaluates_saves_and_resumes(tmp_path):
    whole = their_trainer(tmp_path, eval_strategy="epoch", save_strategy="steps", save_steps=1)
    whole.train()
    assert len(logged(whole)) == 4
    evaluated = logged(whole, "eval_loss")
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]
    for step in (1, 2, 3):
        resumed = their_trainer(tmp_path / "again", eval_strategy="epoch")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert logged(resumed) == logged(whole)
        assert logged(resumed, "eval_loss")[-1] == evaluated[-1]


def trained_by_ranks(rank, world, folder):
    made = their_trainer(folder / str(world), rank, world, eval_strategy="epoch")
    made.train()
    return logged(made), logged(made, "eval_loss")


def test_their_trainer_on_two_processes_has_the_losses_of_one(tmp_path):
    alone = trained_by_ranks(0, 1, tmp_path)
    first, _ = results(2, trained_by_ranks, tmp_path, timeout=200)  # rank 0 keeps the log
    for mine, whole in zip(first, alone, strict=True):
        assert len(mine) >= 2
        assert mine == pytest.approx(whole, rel=1e-4)
