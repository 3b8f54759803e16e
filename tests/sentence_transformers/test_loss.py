"""The loss of the columns, where it stands beside what the package has elsewhere."""

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
    fused_mfh_loss,
)
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.processes import results
from tests.support.sentences import columns, embedded


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 3, 1, 2, 1, 9])])
def test_it_is_the_loss_of_the_columns(labels):
    given = columns()
    loss = MultifoldLoss(embedded, MFHLoss(rounds=None), scale=7.0, positives="all")
    value = loss(given, labels)
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
    loss = MFHLoss(rounds=None, process_group=dist.group.WORLD)
    return MultifoldLoss(embedded, loss, positives="all")(given)


def test_rows_of_two_ranks_are_instances_of_their_own():
    expected = MultifoldLoss(embedded, MFHLoss(rounds=None), positives="all")(columns())
    for value in results(2, shard):
        torch.testing.assert_close(value, expected.detach())


def test_errors():
    with pytest.raises(ValueError, match="one or more of positives, got 1"):
        MultifoldLoss(embedded)(columns(1))
    with pytest.raises(TypeError, match="labels must hold integers"):
        MultifoldLoss(embedded, positives="all")(columns(), torch.rand(6))


@pytest.mark.parametrize("loss", ["mfh", SigLipLoss(), CWCLLoss(), IntraModalLoss(), MFHLoss])
def test_a_loss_that_takes_other_arguments(loss):
    with pytest.raises(TypeError, match="loss must be a module that is called with features of"):
        MultifoldLoss(embedded, loss)
