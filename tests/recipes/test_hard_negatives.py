"""docs/recipes/hard_negatives.py against matrices and sentence-transformers."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from docs.recipes.hard_negatives import (
    counting,
    gist,
    joint_softmax,
    listed,
    negclip,
    own_lists,
    own_negatives,
    ranking,
    with_hardness,
)
from mxm_kernels import contrastive_rows, fused_info_nce_loss
from tests.recipes.same import (
    QUEUE,
    assert_close,
    assert_same,
    assert_same_on_ranks,
    differentiated,
    unit,
)
from tests.support.sentences import their_losses, word_tokenizer

SEEDS = [0, 1, 2]
DIRECTIONS = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"
SLACK = 1e-4  # of the filter, for texts that are as near as the positive but for rounding
MODES = "in_batch_negatives", "hard_negatives", "all_negatives"


def batch(anchors=6, each=2):
    """Anchors, their positives and negatives of each."""
    return unit(anchors, 8), unit(anchors, 8), unit(anchors, each, 8)


def test_texts_and_owners():
    texts, owners = listed(unit(3, 8), unit(3, 2, 8), first=10)
    assert texts.shape == (9, 8)
    assert owners.tolist() == [10, 11, 12, 10, 10, 11, 11, 12, 12]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scales", ["one", "rows"])
@pytest.mark.parametrize("each", [1, 3])
def test_own_negatives(backend, each, scales, seed):
    """An anchor sees all positives, and of the negatives its own."""
    torch.manual_seed(seed)

    def dense(x, y, negatives, *scale):
        s, t = (scale[0].expand(6), scale[0].expand(6)) if scales == "one" else scale
        S = s[:, None] * x @ y.T
        own = s[:, None] * torch.einsum("md,mkd->mk", x, negatives)
        target = torch.arange(6)
        forward = cross_entropy(torch.cat([S, own], 1), target)
        return (forward + cross_entropy(t[:, None] * y @ x.T, target)) / 2

    def ours(x, y, negatives, *scale):
        s = scale[0] if scales == "one" else scale
        rows = contrastive_rows(x, y, (1, 1), logit_scale=s, backend=backend.name)
        return ranking_of_pairs(own_negatives(rows, x, negatives))

    given = (torch.tensor(9.0),) if scales == "one" else tuple(8 * torch.rand(2, 6) + 2)
    assert_same(backend, ours, dense, *batch(each=each), *given)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("each", [1, 3])
def test_own_lists(backend, each, seed):
    """By ids, with a public loss: the same as ``own_negatives``."""
    torch.manual_seed(seed)

    def dense(x, y, negatives, scale):
        own = torch.einsum("md,mkd->mk", x, negatives)
        target = torch.arange(6)
        forward = cross_entropy(scale * torch.cat([x @ y.T, own], 1), target)
        return (forward + cross_entropy(scale * y @ x.T, target)) / 2

    def ours(x, y, negatives, scale):
        texts, owners = listed(y, negatives)
        folds, within = own_lists(owners, len(x))
        given = {"logit_scale": scale, "within_ids": within, "backend": backend.name}
        return fused_info_nce_loss(x, texts, folds, **given)

    assert_same(backend, ours, dense, *batch(each=each), torch.tensor(9.0))


def ranking_of_pairs(rows):
    return rows.mean(torch.logaddexp(rows.neg_lse, rows.positives) - rows.positives)


def test_own_negatives_are_counted_beside_a_queue_s():
    x, y, negatives = batch()
    rows = contrastive_rows(x, y, (1, 1), logit_scale=9.0, text_queue=QUEUE)
    assert own_negatives(rows, x, negatives).num_negatives.tolist() == [12.0] * 6 + [5.0] * 6


def rows_of(x, texts, owners, scale, **options):
    """The anchors against all texts; an anchor's own negatives are in its list of positives."""
    own = owners[: len(x)].to(x.device)
    folds = own, owners.to(x.device)
    return contrastive_rows(x, texts, folds, logit_scale=scale, image_to_text_weight=1.0, **options)


def hardened(mode, x, y, negatives, scale, strength, **options):
    """The three modes by the recipes."""
    texts, owners = listed(y, negatives)
    others = 0.0 if mode == "hard_negatives" else strength
    own = 0.0 if mode == "in_batch_negatives" else strength
    given = {"logit_scale": scale, "image_to_text_weight": 1.0, **options}
    rows = with_hardness(x, texts, (owners[: len(x)], owners), strength=others, **given)
    return ranking(rows, own / scale)


def dense_hardened(mode, x, y, negatives, scale, strength):
    texts, owners = listed(y, negatives)
    c = x @ texts.T
    own = torch.arange(len(x))[:, None] == owners
    positive = torch.arange(len(x))[:, None] == torch.arange(len(texts))
    taken = {"in_batch_negatives": ~own, "hard_negatives": own & ~positive}.get(mode, ~positive)
    logits = scale * c + strength * taken * c.detach()
    return cross_entropy(logits, torch.arange(len(x)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strength", [0.0, 5.0])
@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_hardness(backend, mode, each, strength, seed):
    torch.manual_seed(seed)

    def dense(*leaves):
        return dense_hardened(mode, *leaves, strength)

    def ours(*leaves):
        return hardened(mode, *leaves, strength, backend=backend.name)

    assert_same(backend, ours, dense, *batch(each=each), torch.tensor(9.0))


def theirs_of(**options):
    """MultipleNegativesRankingLoss of embeddings: anchors, positives, negatives (M, K, D)."""
    pytest.importorskip("sentence_transformers")
    loss = their_losses().MultipleNegativesRankingLoss(None, **options)

    def value(x, y, negatives):
        return loss.compute_loss_from_embeddings([x, y, *negatives.unbind(1)], None)

    return value


def of_normalised(loss):
    return lambda *features: loss(*(normalize(f, dim=-1) for f in features))


def compare(ours, theirs, each=2):
    leaves = [torch.randn(*f.shape, dtype=torch.float64) for f in batch(each=each)]
    got = differentiated(of_normalised(ours), leaves)
    assert_close(got, differentiated(theirs, leaves), 1e-8)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_hardness_of_sentence_transformers(mode, each):
    theirs = theirs_of(scale=20.0, hardness_mode=mode, hardness_strength=5.0)
    scale = torch.tensor(20.0, dtype=torch.float64)
    compare(lambda *e: hardened(mode, *e, scale, 5.0), theirs, each)


def jointly(names, x, y, negatives, scale, first=0, **options):
    texts, owners = listed(y, negatives, first)
    own, given = owners[: len(x)], {"logit_scale": scale, **options}
    rows = rows_of(x, texts, owners, scale, **options)
    within = []
    if "query_to_query" in names:
        within.append(contrastive_rows(x, x, (own, own), **given))
    if "doc_to_doc" in names:
        within.append(contrastive_rows(y, texts, (own, owners), **given))
    return joint_softmax(rows, *within, doc_to_query="doc_to_query" in names)


def dense_jointly(names, x, y, negatives, scale):
    texts, owners = listed(y, negatives)
    own = owners[: len(x)]
    S = {
        "query_to_doc": x @ texts.T,
        "query_to_query": x @ x.T,
        "doc_to_query": y @ x.T,
        "doc_to_doc": y @ texts.T,
    }
    masks = {name: torch.zeros_like(s, dtype=torch.bool) for name, s in S.items()}
    masks["query_to_query"] = own[:, None] == own
    masks["doc_to_doc"] = own[:, None] == owners
    logits = [(scale * S[name]).masked_fill(masks[name], -torch.inf) for name in names]
    return cross_entropy(torch.cat(logits, 1), own)


CHOSEN = [DIRECTIONS[:n] for n in (1, 2, 3, 4)] + [("query_to_doc", "doc_to_doc")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("names", CHOSEN, ids=len)
def test_one_softmax_over_directions(backend, names, seed):
    torch.manual_seed(seed)

    def dense(*leaves):
        return dense_jointly(names, *leaves)

    def ours(*leaves):
        return jointly(names, *leaves, backend=backend.name)

    assert_same(backend, ours, dense, *batch(), torch.tensor(9.0))


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("names", CHOSEN, ids=len)
def test_joint_directions_of_sentence_transformers(names, each):
    theirs = theirs_of(scale=20.0, directions=names, partition_mode="joint")
    compare(lambda *e: jointly(names, *e, 20.0), theirs, each)


def test_a_softmax_for_each_direction_of_sentence_transformers():
    """A public loss has this one: the mean over texts that have an anchor."""
    names = "query_to_doc", "doc_to_query"
    theirs = theirs_of(scale=20.0, directions=names, partition_mode="per_direction")

    def ours(x, y, negatives):
        folds = torch.arange(len(x)), torch.arange(len(y) + negatives.shape[0] * 2)
        return fused_info_nce_loss(x, listed(y, negatives)[0], folds, logit_scale=20.0)

    compare(ours, theirs)


def guide_of(anchors=6, each=1):
    """Another model's features of the same texts, of another width."""
    return unit(anchors, 5), unit(anchors * (1 + each), 5)


def thresholds(guide, margin, relative):
    pairs = (guide[0] * guide[1][: len(guide[0])]).sum(1)
    return pairs - (pairs.abs() * margin if relative else margin)


def dense_gist(x, texts, scale, guide, theta):
    """Four blocks, of which an anchor's threshold, and a slack, takes what is too near."""
    n, pair = len(x), torch.arange(len(x))
    y = texts[:n]
    of_guide = guide[0], guide[1][:n]
    blocks = [(x @ texts.T, guide[0] @ guide[1].T)]
    blocks += [(f @ f.T, g @ g.T) for f, g in zip((x, y), of_guide, strict=True)]
    logits = []
    for k, (S, c) in enumerate(blocks):
        out = c > theta[:, None] + SLACK
        out[pair, pair] = k > 0
        logits.append((scale * S).masked_fill(out, -torch.inf))
    return cross_entropy(torch.cat(logits, 1), pair)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("each", [0, 1, 2])
@pytest.mark.parametrize("margin", [0.0, 0.3, -0.4])
def test_gist(backend, margin, each, seed):
    torch.manual_seed(seed)
    guide, texts = guide_of(each=each), unit(6 * (1 + each), 8)
    theta = thresholds(guide, margin, relative=False)

    def dense(x, texts, scale):
        return dense_gist(x, texts, scale, guide, theta)

    def ours(x, texts, scale):
        given = [(f, g.to(f)) for f, g in zip((x, texts), guide, strict=True)]
        ids = torch.arange(6, device=x.device)
        return gist(*given, ids, margin, logit_scale=scale, backend=backend.name)

    assert_same(backend, ours, dense, unit(6, 8), texts, torch.tensor(9.0))


class Embedding:
    """A model that gives a column's rows as they are; it has the tokenizer that is asked for."""

    max_seq_length = 8

    def __init__(self, name, tokenizer):
        self.name, self.tokenizer = name, tokenizer

    def __call__(self, column):
        return {"sentence_embedding": column[self.name]}


def gist_of_sentence_transformers(**options):
    """GISTEmbedLoss of columns that have both models' rows."""
    pytest.importorskip("sentence_transformers")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    model, guide = (Embedding(name, tokenizer) for name in ("rows", "guide"))
    return their_losses().GISTEmbedLoss(model, guide, **options)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("each", [0, 1])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_gist_of_sentence_transformers(margin, each, relative):
    guide = guide_of(each=each)
    strategy = "relative" if relative else "absolute"
    options = {"temperature": 0.05, "margin": margin, "margin_strategy": strategy}
    loss = gist_of_sentence_transformers(**options)

    def theirs(x, texts):
        columns = zip((x, *texts.split(6)), (guide[0], *guide[1].split(6)), strict=True)
        return loss([{"rows": rows, "guide": of_guide} for rows, of_guide in columns], None)

    def ours(x, texts):
        given = [(normalize(f), g.to(f)) for f, g in zip((x, texts), guide, strict=True)]
        # gist's margin is absolute: a relative one is a number for each anchor.
        pairs = (guide[0] * guide[1][:6]).sum(1)
        own = pairs.abs() * margin if relative else margin
        return gist(*given, torch.arange(6), own, logit_scale=20.0)

    leaves = torch.randn(6, 8).double(), torch.randn(6 * (1 + each), 8).double()
    assert_close(differentiated(ours, leaves), differentiated(theirs, leaves), 1e-8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("several", [False, True], ids=["pairs", "several captions"])
def test_negclip(backend, several, seed):
    """Cross-entropy both ways, without that of the columns of negative captions."""
    torch.manual_seed(seed)
    ids = torch.arange(7)

    def dense(x, y, negatives, scale):
        S = scale * x @ torch.cat([y, negatives]).T
        return (cross_entropy(S, ids) + cross_entropy(S.T[:7], ids)) / 2

    def ours(x, y, negatives, scale):
        given = {"logit_scale": scale, "backend": backend.name}
        return negclip(x, y, negatives, ids.to(x.device) + 3, **given)

    negatives = unit(14 if several else 5, 8)
    assert_same(backend, ours, dense, unit(7, 8), unit(7, 8), negatives, torch.tensor(9.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_counting(seed):
    torch.manual_seed(seed)

    def dense(x, y, false, scale):
        true, wrong = ((scale * (x * t).sum(1)).exp() for t in (y, false))
        return -(true / (true + wrong)).log().mean()

    leaves = [f.double() for f in (unit(5, 8), unit(5, 8), unit(5, 8), torch.tensor(9.0))]
    assert_close(differentiated(counting, leaves), differentiated(dense, leaves), 1e-8)


NEGATIVES = normalize(torch.arange(144.0).view(9, 2, 8).square().sin(), dim=2)


def _ranked(name, x, y, scale, rows, cols, group):
    x, y, negatives = x[rows], y[cols], NEGATIVES[rows].to(x)
    first = rows.start or 0
    given = {"process_group": group, "text_queue": QUEUE.to(x)}
    texts, owners = listed(y, negatives, first)
    own = owners[: len(x)]
    if name == "own negatives":
        rows = contrastive_rows(x, y, (own, own), logit_scale=scale, **given)
        return ranking_of_pairs(own_negatives(rows, x, negatives))
    if name == "own lists":
        folds, within = own_lists(owners, len(x))
        return fused_info_nce_loss(x, texts, folds, within_ids=within, logit_scale=scale, **given)
    if name == "hard_negatives":
        return ranking(rows_of(x, texts, owners, scale, **given), 5.0 / scale)
    if name == "in_batch_negatives":
        given["image_to_text_weight"] = 1.0
        rows = with_hardness(x, texts, (own, owners), logit_scale=scale, strength=5.0, **given)
        return ranking(rows)
    if name == "negclip":
        return negclip(x, y, negatives.flatten(0, 1), own, logit_scale=scale, **given)
    del given["text_queue"]
    return jointly(DIRECTIONS, x, y, negatives, scale, first, **given)


RANKED = (
    "own negatives",
    "own lists",
    "hard_negatives",
    "in_batch_negatives",
    "negclip",
    "directions",
)


def test_over_two_ranks():
    leaves = unit(9, 8), unit(9, 8), torch.tensor(9.0)
    losses = {name: partial(_ranked, name) for name in RANKED}
    assert_same_on_ranks(losses, leaves, (4, 5), (4, 5))
