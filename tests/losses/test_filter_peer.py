"""The filter against GISTEmbedLoss of sentence-transformers, where both compute the same.

Its anchors and texts alone: no anchors among themselves, no texts among themselves. Its threshold
is the similarity of the one positive, in one direction. Ours has a slack of 1e-4 above it.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mxm_kernels import Folds, InfoNCELoss
from tests.support.sentences import their_losses

ROWS, WIDTH, GUIDE_WIDTH, TEMPERATURE = 10, 8, 5, 0.1
SLACK, ROOM = 1e-4, 2e-4
ONE_DIRECTION = {"image_to_text_weight": 1.0}


class Given(nn.Module):
    """A model whose embeddings of a column are given with it."""

    def __init__(self, name, tokenizer):
        super().__init__()
        self.name, self.tokenizer, self.max_seq_length = name, tokenizer, 8

    def forward(self, column):
        return {"sentence_embedding": column[self.name]}


def tokenizer():
    """What their loss wants to see of both models."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, "[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")


def theirs(embeddings, guided, strategy, margin):
    """GISTEmbedLoss of columns: anchors, positives and, if there is a third one, negatives."""
    shared = tokenizer()
    loss = their_losses().GISTEmbedLoss(
        Given("model", shared),
        Given("guide", shared),
        temperature=TEMPERATURE,
        margin_strategy=strategy,
        margin=margin,
        contrast_anchors=False,
        contrast_positives=False,
    )
    columns = [{"model": e, "guide": g} for e, g in zip(embeddings, guided, strict=True)]
    return loss(columns, None)


def ours(embeddings, guided, strategy, margin, backend):
    """Texts are the positives, then the negatives, which are negatives of every anchor."""
    (x, *columns), (tx, *guides) = embeddings, guided
    ids = torch.arange(len(columns) * len(x))
    criterion = InfoNCELoss(
        filter_margin=margin, filter_strategy=strategy, backend=backend.name, **ONE_DIRECTION
    )
    return criterion(
        normalize(x, dim=1),
        normalize(torch.cat(columns), dim=1),
        Folds.from_ids(ids[: len(x)], ids).to(x.device),
        logit_scale=1 / TEMPERATURE,
        teacher_image_features=normalize(tx, dim=1),
        teacher_text_features=normalize(torch.cat(guides), dim=1),
    )


def distances(guided, strategy, margin):
    """(rows, texts) how far above its row's threshold each text but the positive is."""
    anchors, *columns = (normalize(g, dim=1) for g in guided)
    similarities = anchors @ torch.cat(columns).T
    own = similarities.diagonal()[:, None]
    less = margin if strategy == "absolute" else own.abs() * margin
    apart = similarities - (own - less)
    return apart[~torch.eye(*apart.shape, dtype=torch.bool)].view(len(anchors), -1)


def drawn(columns, seed, rows=ROWS, guide_width=GUIDE_WIDTH):
    """Embeddings of a model and of a guide, positives near their anchors."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for width in (WIDTH, guide_width):
        anchors = torch.randn(rows, width, generator=generator)
        positives = anchors + torch.randn(rows, width, generator=generator)
        more = [torch.randn(rows, width, generator=generator) for _ in range(columns - 2)]
        made.append([anchors, positives, *more])
    return made


def away_from_thresholds(columns, strategy, margin):
    """The first draw in which no similarity is near a threshold and every decision occurs."""
    for seed in range(1000):
        embeddings, guided = drawn(columns, seed)
        apart = distances(guided, strategy, margin)
        if bool(((apart - SLACK).abs() > ROOM).all() and (apart.abs() > ROOM).all()):
            return embeddings, guided, apart > 0
    raise AssertionError("no draw keeps away from the thresholds")


def compare(function, other, embeddings, device):
    """Values and gradients of both."""
    results = []
    for run, place in ((function, device), (other, torch.device("cpu"))):
        leaves = [e.to(place, copy=True).requires_grad_() for e in embeddings]
        value = run(leaves)
        value.backward()
        results.append([value.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("columns", [2, 3])
def test_it_is_gist_embed_loss_in_one_direction(columns, strategy, margin, backend):
    pytest.importorskip("sentence_transformers")
    embeddings, guided, out = away_from_thresholds(columns, strategy, margin)
    assert out.any() and not out.all()
    on_device = [g.to(backend.device) for g in guided]
    compare(
        lambda leaves: ours(leaves, on_device, strategy, margin, backend),
        lambda leaves: theirs(leaves, guided, strategy, margin),
        embeddings,
        backend.device,
    )


def test_exact_duplicates_of_a_positive_stay_negatives(backend):
    """In theirs the rounding of two products decides; here the slack leaves it to none."""
    rows = 48
    embeddings, guided = drawn(3, 0, rows, guide_width=384)
    guided[2] = guided[1].clone()  # the guide finds each hard negative as near as its positive
    on_device = [[v.to(backend.device) for v in columns] for columns in (embeddings, guided)]
    found = ours(*on_device, "absolute", 0.0, backend)
    x, *y = (normalize(e, dim=1).double() for e in embeddings)
    logits = x @ torch.cat(y).T / TEMPERATURE
    expected = nn.functional.cross_entropy(logits, torch.arange(rows))
    # A random text of this width is far below every threshold: nothing else is left out.
    assert (distances(guided, "absolute", 0.0) > -ROOM).sum() == rows
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=0)
