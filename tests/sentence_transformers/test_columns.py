"""What the columns mean: the loss of the anchors, the positive and the negative texts."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import DebiasedLoss, HardLoss, InfoNCELoss, MFHLoss, SupConLoss, fused_mfh_loss
from mxm_kernels.sentence_transformers import MultifoldLoss
from mxm_kernels.sentence_transformers.columns import NEGATIVE
from tests.support.sentences import SYMMETRIC, columns, embedded, ranking_loss

ONE_POSITIVE = {  # that are InfoNCE where an anchor has one positive
    "default": None,
    "hard": HardLoss(),
    "in expectation": MFHLoss(rounds=None),
    "InfoNCE": InfoNCELoss(),
    "SupCon": SupConLoss(),
    "not debiased": DebiasedLoss(0.0),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def value_and_gradients(loss, given, labels=None):
    value = loss(given, labels)
    return [value.detach(), *torch.autograd.grad(value, [column["rows"] for column in given])]


@pytest.mark.parametrize("directions", [("query_to_doc",), SYMMETRIC, None], ids=str)
@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ONE_POSITIVE)
def test_it_is_their_loss(name, dtype, number, directions):
    """Pairs, triplets and several negatives."""
    pytest.importorskip("sentence_transformers")
    given = columns(number, rows=7, dtype=dtype)
    theirs = ranking_loss(embedded, directions or SYMMETRIC, scale=9.0)
    modes = {SYMMETRIC: "per_direction", ("query_to_doc",): "joint"}
    said = {}
    if directions is not None:
        said = {"directions": directions, "partition_mode": modes[directions]}
    ours = MultifoldLoss(embedded, ONE_POSITIVE[name], 9.0, positives=1, **said)
    expected, got = value_and_gradients(theirs, given), value_and_gradients(ours, given)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(got, expected, **close)


def test_a_text_equal_to_a_positive_is_a_negative_as_theirs():
    given = columns(3)
    rows = given[1]["rows"].detach().clone()
    rows[0] = rows[1]  # two anchors with the same positive
    repeated = rows.flip(0)  # and every positive again, as a negative of another row
    given = [given[0], *({"rows": r.clone().requires_grad_()} for r in (rows, repeated))]
    for directions in (("query_to_doc",), SYMMETRIC):
        theirs = ranking_loss(embedded, directions)
        ours = MultifoldLoss(
            embedded, positives=1, directions=directions, partition_mode="per_direction"
        )
        expected, got = value_and_gradients(theirs, given), value_and_gradients(ours, given)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def dense(given, positives, labels, scale, smoothing, both):
    """SupCon by masks: the mean over anchors and, if both, over positive texts, of their losses."""
    x, *texts = (normalize(column["rows"], dim=1) for column in given)
    rows = len(x)
    s = scale * x @ torch.cat(texts).T
    same = (labels[:, None] == labels).repeat(1, len(texts)).to(s.dtype)
    same[:, rows * positives :] = 0

    def mean(s, same):
        target = (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / s.shape[1]
        return (s.logsumexp(1) - (target * s).sum(1)).mean()

    forward = mean(s, same)
    if not both:
        return forward
    of_positives = slice(rows * positives)
    return (forward + mean(s.T[of_positives], same.T[of_positives])) / 2


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positives", [1, 2, 3, "all"])
@pytest.mark.parametrize("labels", [torch.arange(6), torch.tensor([3, 3, 1, -2, 1, 3])], ids=str)
def test_labels_join_anchors_and_positives_and_no_negative(labels, positives, smoothing, both):
    given = columns(5, dtype=torch.float64)
    count = 4 if positives == "all" else positives
    directions = None if both else ("query_to_doc",)
    ours = MultifoldLoss(
        embedded,
        SupConLoss(label_smoothing=smoothing),
        7.0,
        positives=positives,
        directions=directions,
    )
    value = dense(given, count, labels, 7.0, smoothing, both)
    expected = [value.detach(), *torch.autograd.grad(value, [c["rows"] for c in given])]
    got = value_and_gradients(ours, given, labels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if torch.equal(labels, torch.arange(6)):
        torch.testing.assert_close(value_and_gradients(ours, given), expected)


def test_a_negative_of_the_same_label_is_one():
    """As a row of another instance, not as a positive."""
    given, labels = columns(3), torch.tensor([4, 4, 4, 4, 4, 4])
    x, y, z = (normalize(column["rows"], dim=1) for column in given)
    folds = labels, torch.cat([labels, labels + 1])
    expected = fused_mfh_loss(x, torch.cat([y, z]), folds, logit_scale=20.0, rounds=None)
    value = MultifoldLoss(embedded, MFHLoss(rounds=None), positives=1)(given, labels)
    torch.testing.assert_close(value, expected)
    assert value > 0


def test_more_than_two_columns_warn_once_where_positives_is_not_given():
    given, loss = columns(4), MultifoldLoss(embedded, InfoNCELoss())
    with pytest.warns(UserWarning, match=r"4 columns, and positives was not given.*positives='all"):
        value = loss(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(given) == value == MultifoldLoss(embedded, InfoNCELoss(), positives=1)(given)
        assert value != MultifoldLoss(embedded, InfoNCELoss(), positives="all")(given)
        assert MultifoldLoss(embedded, InfoNCELoss())(given[:2]) > 0


MAKING = {
    "no column": ({"positives": 0}, ValueError, "positives must be at least 1, got 0"),
    "a flag": ({"positives": True}, TypeError, "positives must be an integer, got bool"),
    "a share": ({"positives": 1.0}, TypeError, "positives must be an integer, got float"),
    "a word": ({"positives": "al"}, ValueError, "a number of columns or 'all', got 'al'"),
    "scale of 0": ({"scale": 0}, ValueError, "scale must be positive"),
    "a scale in words": ({"scale": "20"}, TypeError, "scale must be a number, got str"),
    "a learned scale": (
        {"scale": torch.nn.Parameter(torch.tensor(20.0))},  # that DDP would not average
        TypeError,
        "scale must be a number, got Parameter",
    ),
    "a direction alone": ({"directions": "query_to_doc"}, TypeError, "must be a tuple of names"),
    "no directions": ({"directions": ()}, ValueError, "must have 'query_to_doc'"),
    "the other direction": (
        {"directions": ("doc_to_query",)},
        ValueError,
        "directions must have 'query_to_doc', as in MultipleNegativesRankingLoss",
    ),
    "a misspelt direction": (
        {"directions": ("query_to_docs",)},
        ValueError,
        "must be names out of query_to_doc, doc_to_query, got 'query_to_docs'",
    ),
    "a direction in a list": (
        {"directions": [["query_to_doc"]]},
        ValueError,
        "must be names out of",
    ),
    "between anchors": (
        {"directions": ("query_to_doc", "query_to_query")},
        ValueError,
        "query_to_query is not built",
    ),
    "between texts": (
        {"directions": ("query_to_doc", "doc_to_doc"), "partition_mode": "joint"},
        ValueError,
        "doc_to_doc is not built",
    ),
    "their default of both": (
        {"directions": SYMMETRIC},
        ValueError,
        "partition_mode must be 'per_direction' for both directions, got None",
    ),
    "one softmax": (
        {"directions": SYMMETRIC, "partition_mode": "joint"},
        ValueError,
        "'per_direction' for both directions, got 'joint'",
    ),
    "one softmax of our default": (
        {"partition_mode": "joint"},
        ValueError,
        "'per_direction' for both directions, got 'joint'",
    ),
    "a misspelt mode": (
        {"partition_mode": "per-direction"},
        ValueError,
        "partition_mode must be 'joint' or 'per_direction', got 'per-direction'",
    ),
    "directions twice": (
        {"loss": MFHLoss(image_to_text_weight=0.5), "directions": ("query_to_doc",)},
        TypeError,
        "directions and image_to_text_weight of the loss say the same: give one of them",
    ),
    "directions of another loss": (
        {"loss": torch.nn.Identity(), "directions": ("query_to_doc",)},
        TypeError,
        "loss must be a module that is called",
    ),
    "rows": ({"loss": MFHLoss(reduction="none")}, ValueError, "must have reduction='mean'"),
    "devices": ({"gather_across_devices": 1}, TypeError, "must be True or False, got int"),
    "no mini-batch": ({"mini_batch_size": 0}, ValueError, "mini_batch_size must be at least 1"),
}


@pytest.mark.parametrize("name", MAKING)
def test_errors_where_it_is_made(name):
    options, error, message = MAKING[name]
    with pytest.raises(error, match=message.replace("(", r"\(")):
        MultifoldLoss(embedded, **options)


class Own(torch.nn.Module):
    """A user's own module, called as ours are."""

    def forward(self, image_features, text_features, folds, *, logit_scale):
        return MFHLoss(rounds=None)(image_features, text_features, folds, logit_scale=logit_scale)


def test_a_loss_of_the_users_own():
    given = columns()
    value = MultifoldLoss(embedded, Own(), positives=1)(given)
    torch.testing.assert_close(value, ranking_loss(embedded, SYMMETRIC)(given, None))
    for option in ({"directions": ("query_to_doc",)}, {"gather_across_devices": True}):
        (argument,) = option
        with pytest.raises(TypeError, match=f"{argument} sets an option of the loss.*got Own"):
            MultifoldLoss(embedded, Own(), **option)


CALLING = {
    "one column": ({}, 1, None, ValueError, "one or more of positives, got 1"),
    "no column": ({}, 0, None, ValueError, "one or more of positives, got 0"),
    "too few": ({"positives": 5}, 3, None, ValueError, "positives=5 needs 6 columns.*got 3"),
    "all of none": ({"positives": "all"}, 1, None, ValueError, "one or more of positives"),
    "scores": ({}, 2, torch.rand(6), TypeError, "labels must hold integers"),
    "flags": ({}, 2, torch.ones(6).bool(), TypeError, "labels must hold integers"),
    "short": ({}, 2, torch.arange(5), ValueError, "labels: expected one for each of 6 rows, got 5"),
    "reserved": (
        {"positives": 1},
        3,
        torch.tensor([0, 1, 2, 3, 4, NEGATIVE]),
        ValueError,
        "labels must not be -9223372036854775808",
    ),
}


@pytest.mark.parametrize("name", CALLING)
def test_errors_of_a_call(name):
    options, number, labels, error, message = CALLING[name]
    with pytest.raises(error, match=message):
        MultifoldLoss(embedded, **options)(columns(number), labels)


def test_columns_of_different_lengths():
    given = [columns(1, rows=rows)[0] for rows in (4, 5)]
    with pytest.raises(ValueError, match=r"as many rows in every column, got \[4, 5\]"):
        MultifoldLoss(embedded)(given)


def test_the_reserved_label_is_free_without_negatives():
    labels = torch.tensor([0, 1, 2, 3, 4, NEGATIVE])
    loss = MultifoldLoss(embedded, InfoNCELoss())
    given = columns(2)
    torch.testing.assert_close(loss(given, labels), loss(given))


@pytest.mark.new_process
def test_importing_it_imports_no_sentence_transformers():
    code = """
import sys, torch
from mxm_kernels.sentence_transformers import MultifoldLoss
loss = MultifoldLoss(lambda c: {"sentence_embedding": c}, positives=1)
loss([torch.randn(4, 3) for _ in range(3)])
assert "sentence_transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
