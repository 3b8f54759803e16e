"""Columns, tiny models and trainers of sentence-transformers, made without a download."""

from __future__ import annotations

import warnings

import pytest
import torch
from packaging.version import Version
from torch import nn

from tests.support.processes import as_torchrun

ANIMALS = ["cat", "dog", "horse", "cow", "duck", "goose", "mouse", "fox"]
WORDS = ["[PAD]", "[UNK]", "a", "the", "small", "big", "old", "loud", *ANIMALS]
SYMMETRIC = ("query_to_doc", "doc_to_query")


def embedded(column):
    """A model that gives the rows as they are."""
    return {"sentence_embedding": column["rows"]}


class Rows(nn.Module):
    """A model of one layer over rows of features."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(8, 6, dtype=dtype)

    def forward(self, column):
        return {"sentence_embedding": self.layer(column["rows"])}


def columns(number=3, rows=6, dtype=torch.float32):
    return [{"rows": torch.randn(rows, 8, dtype=dtype, requires_grad=True)} for _ in range(number)]


def their_losses():
    """Their module of losses, which newer versions have elsewhere too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from sentence_transformers import losses
    return losses


def ranking_loss(model, directions=("query_to_doc",), **options):
    """MultipleNegativesRankingLoss with a softmax for each direction."""
    kind = their_losses().MultipleNegativesRankingLoss
    return kind(model, directions=directions, partition_mode="per_direction", **options)


def word_tokenizer():
    """One of the tokenizers library, of a few words."""
    tokenizers = pytest.importorskip("tokenizers")
    word_level = tokenizers.models.WordLevel({w: k for k, w in enumerate(WORDS)}, "[UNK]")
    tokenizer = tokenizers.Tokenizer(word_level)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def static_model():
    """A SentenceTransformer that averages the vectors of the words."""
    st = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():  # newer versions have it elsewhere too
        warnings.simplefilter("ignore", DeprecationWarning)
        from sentence_transformers.models import StaticEmbedding
    embedding = StaticEmbedding(word_tokenizer(), embedding_dim=8)
    return st.SentenceTransformer(modules=[embedding], device="cpu")


def bert_model(folder, dropout=0.0):
    """A SentenceTransformer of one layer of BERT in float64, read from the folder it is made in."""
    st = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[UNK]"
    )
    wrapped.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return st.SentenceTransformer(str(folder), device="cpu").double().train()


def tokens(model, *texts):
    """What the trainer hands to a loss: the tokens of each column."""
    tokenize = getattr(model, "preprocess", None) or model.tokenize
    return [dict(tokenize(list(column))) for column in texts]


def texts(*patterns):
    """A column for each pattern, with the animals in its place."""
    return [[pattern.format(animal) for animal in ANIMALS] for pattern in patterns]


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def calls(model):
    """The numbers of texts in every call of a transformer, filled in as it runs."""
    seen = []
    model[0].register_forward_hook(
        lambda module, given, output: seen.append(len(output["token_embeddings"]))
    )
    return seen


def their_cache_rounds():
    """How near the gradients of their gradient cache are; older versions sum them in float32."""
    import sentence_transformers

    exact = Version(sentence_transformers.__version__) >= Version("6.2")
    return {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-6}


def has_their_cache():
    """Whether the installed version has the gradient cache for losses of others (5.7)."""
    pytest.importorskip("sentence_transformers")
    try:
        from sentence_transformers.base.losses import CachedLossMixin
    except ImportError:
        return False
    return CachedLossMixin is not None


def trainer(folder, make_loss, table, rank=0, world=1, model=None, **options):
    """A trainer of two epochs on a table of columns; several processes share each batch."""
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    if world > 1:
        as_torchrun(rank, world)
    torch.manual_seed(3)
    model = model or static_model()
    loss = make_loss(model)
    rows = len(next(iter(table.values())))
    given = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        **{
            "num_train_epochs": 2,
            "per_device_train_batch_size": rows // 2 // world,
            "per_device_eval_batch_size": rows // world,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            **options,
        },
    )
    assert (given.world_size, given.process_index) == (world, rank)
    data = datasets.Dataset.from_dict(table)
    return SentenceTransformerTrainer(
        model=model, args=given, train_dataset=data, eval_dataset=data, loss=loss
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
