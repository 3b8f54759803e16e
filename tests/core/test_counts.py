"""What is a count of rows, what are ids, and what is neither; a count is never a bool."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import mxm_kernels as mxm
from mxm_kernels import data, open_clip
from mxm_kernels.retrieval import retrieval_metrics

X = torch.eye(4)
CALLS = {
    "mfh": lambda folds: mxm.fused_mfh_loss(X, X, folds, logit_scale=1.0, rounds=None),
    "info_nce": lambda folds: mxm.fused_info_nce_loss(X, X, folds, logit_scale=1.0),
    "siglip": lambda folds: mxm.fused_siglip_loss(X, X, folds, logit_scale=1.0, logit_bias=0.0),
    "rows": lambda folds: mxm.contrastive_rows(X, X, folds, logit_scale=1.0),
    "metrics": lambda folds: retrieval_metrics(X, X, folds),
    "draw": lambda folds: mxm.draw_selection(folds, X, X, rounds=1),
}
NEITHER = {
    "bools": ((True, True), "bool and bool"),
    "a bool and a count": ((2, False), "int and bool"),
    "bools of numpy": ((np.bool_(True), np.bool_(True)), "0-d bool_? and 0-d bool_?"),
    "0-d tensors": ((torch.tensor(2), torch.tensor(2)), "0-d Tensor and 0-d Tensor"),
    "a 0-d tensor and a count": ((torch.tensor(2), 2), "0-d Tensor and int"),
    "a count and ids": ((2, [0, 0, 1, 1]), "int and list"),
    "a 0-d tensor and ids": ((torch.tensor(2), [0, 0, 1, 1]), "0-d Tensor and list"),
    "0-d arrays": ((np.array(2), np.array(2)), "0-d ndarray and 0-d ndarray"),
    "floats": ((2.0, 2.0), "float and float"),
    "floats of numpy": ((np.float32(2), np.float64(2)), "0-d float32 and 0-d float64"),
    "fractions": ((Fraction(2), 2), "Fraction and int"),
}


@pytest.mark.parametrize("name", NEITHER)
@pytest.mark.parametrize("call", CALLS)
def test_neither_counts_nor_ids(call, name):
    folds, kinds = NEITHER[name]
    expected = rf"folds must be Folds, a pair \(views, captions\) .*, got a pair of {kinds}$"
    with pytest.raises(TypeError, match=expected):
        CALLS[call](folds)


@pytest.mark.parametrize("two", [2, np.int64(2), np.uint8(2)], ids=repr)
def test_integers_of_any_kind_are_counts(two):
    expected = CALLS["mfh"](mxm.Folds.uniform(2, 2))
    assert torch.equal(CALLS["mfh"]((two, two)), expected)
    assert torch.equal(CALLS["mfh"]([two, two]), expected)


@pytest.mark.parametrize(
    "ids",
    [[0, 0, 1, 1], (0, 0, 1, 1), np.array([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])],
    ids=lambda ids: type(ids).__name__,
)
def test_ids_of_any_kind_are_ids(ids):
    assert torch.equal(CALLS["mfh"]((ids, ids)), CALLS["mfh"]((2, 2)))


@pytest.mark.parametrize(
    "ids", [[True, True, False, False], [0, True, 2, 3], (np.bool_(True), 0, 1, 1)], ids=repr
)
def test_bools_are_no_ids(ids):
    with pytest.raises(TypeError, match="image_ids must hold integers, got dtype bool"):
        CALLS["mfh"]((ids, [0, 0, 1, 1]))


ONE_SIDED = {
    "intra modal": lambda f: mxm.fused_intra_modal_loss(X, f, logit_scale=1.0),
    "mean": lambda f: mxm.fold_mean(X, f),
}


@pytest.mark.parametrize("call", ONE_SIDED)
@pytest.mark.parametrize(
    ("folds", "kind"),
    [
        (True, "bool"),
        (np.bool_(True), "0-d bool_?"),
        (torch.tensor(2), "0-d Tensor"),
        (np.array(2), "0-d ndarray"),
        (np.float32(2), "0-d float32"),
        (2.0, "float"),
    ],
    ids=repr,
)
def test_neither_of_one_side(call, folds, kind):
    expected = f"must be a number of rows or the ids of the rows, got {kind}$"
    with pytest.raises(TypeError, match=expected):
        ONE_SIDED[call](folds)


def test_a_number_of_numpy_is_one_of_one_side():
    assert torch.equal(ONE_SIDED["intra modal"](np.int32(2)), ONE_SIDED["intra modal"](2))


ITEM = data.MultifoldItem(0, [X], [X])
SAMPLER = data.MultifoldBatchSampler
COUNTS = {
    "rounds": lambda n: mxm.MFHLoss(rounds=n),
    "rounds of a draw": lambda n: mxm.draw_selection((1, 1), X, X, rounds=n),
    "rounds in open_clip's form": lambda n: open_clip.MFHLoss(rounds=n),
    "views": lambda n: mxm.Folds.uniform(n, 1),
    "captions": lambda n: mxm.Folds.uniform(1, n),
    "micro_batch": lambda n: mxm.GradientCache(n),
    "nbytes": lambda n: mxm.set_memory_budget(n),
    "recall_at": lambda n: retrieval_metrics(X, X, (1, 1), recall_at=(n,)),
    "ndcg_at": lambda n: retrieval_metrics(X, X, (1, 1), ndcg_at=n),
    "workspace_bytes": lambda n: retrieval_metrics(X, X, (1, 1), workspace_bytes=n),
    "instances": lambda n: SAMPLER(n, 1),
    "batch_size": lambda n: SAMPLER(4, n),
    "seed": lambda n: SAMPLER(4, 1, seed=n),
    "rank": lambda n: SAMPLER(4, 1, rank=n, num_replicas=2),
    "num_replicas": lambda n: SAMPLER(4, 1, num_replicas=n),
    "epoch": lambda n: SAMPLER(4, 1).set_epoch(n),
    "start_batch": lambda n: SAMPLER(4, 1).resume(0, n),
    "views drawn": lambda n: data.MultifoldDataset([1], [1], [0], [0], views=n),
    "captions drawn": lambda n: data.MultifoldDataset([1], [1], [0], [0], captions=n),
    "key": lambda n: data.MultifoldDataset([1], [1], [0], [0])[n],
    "instance_id": lambda n: data.collate_multifold([ITEM._replace(instance_id=n)]),
    "rank of ClipLoss": lambda n: open_clip.ClipLoss(rank=n, world_size=2),
    "world_size of ClipLoss": lambda n: open_clip.ClipLoss(world_size=n),
    "world_size of DistillClipLoss": lambda n: open_clip.DistillClipLoss(world_size=n),
    "world_size of MFHLoss": lambda n: open_clip.MFHLoss(world_size=n),
    "rank of SigLipLoss": lambda n: open_clip.SigLipLoss(rank=n, world_size=2),
    "world_size of SigLipLoss": lambda n: open_clip.SigLipLoss(world_size=n),
}


@pytest.mark.parametrize("value", [True, np.bool_(True), 1.0], ids=repr)
@pytest.mark.parametrize("name", COUNTS)
def test_what_counts_is_an_integer(name, value):
    with pytest.raises((TypeError, ValueError), match=name.split()[0]):
        COUNTS[name](value)
