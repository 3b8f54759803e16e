"""What holds values is loaded by ``torch.load`` as it is called by default, with weights_only."""

import copy
import io
import pickle

import pytest
import torch
import torch.multiprocessing as mp

import mxm_kernels as mxm
from mxm_kernels import data
from mxm_kernels.retrieval import retrieval_metrics

RAGGED = mxm.Folds.from_ids([7, 3, 3, 9], [3, 7, 5])
UNIFORM = mxm.Folds.uniform(3, 2)
X = torch.eye(3)


def _measured():
    seen = mxm.Diagnostics()
    mxm.fused_info_nce_loss(X, X, logit_scale=1.0, diagnostics=seen)
    return seen


ITEM = data.MultifoldItem(4, [torch.zeros(2)], [torch.ones(1)])
VALUES = {
    "ragged folds": RAGGED,
    "uniform folds": UNIFORM,
    "folds in a checkpoint": {"epoch": 3, "folds": [RAGGED, UNIFORM]},
    "queue": mxm.Queue(X, RAGGED),
    "queue of negatives": mxm.Queue(X),
    "diagnostics": _measured(),
    "empty diagnostics": mxm.Diagnostics(),
    "batch": data.collate_multifold([ITEM]),
    "item": ITEM,
    "key": data.InstanceKey(3, 1, 2),
    "metrics": retrieval_metrics(X, X, (1, 1)),
}


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", VALUES)
def test_loaded_by_default(name):
    value = VALUES[name]
    for made in (torch.load(_saved(value)), torch.load(_saved(value), weights_only=True)):
        assert type(made) is type(value)
        assert repr(made) == repr(value)


@pytest.mark.parametrize("name", VALUES)
def test_copied_and_pickled(name):
    value = VALUES[name]
    for made in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(made) is type(value)
        assert repr(made) == repr(value)


def _tables(folds):
    return vars(folds.tables(4, 3, torch.device("cpu")))


def test_loaded_folds_have_the_same_tables_and_ids():
    loaded = torch.load(_saved(RAGGED))
    for name, wanted in _tables(RAGGED).items():
        assert torch.equal(torch.as_tensor(_tables(loaded)[name]), torch.as_tensor(wanted)), name
    cpu = torch.device("cpu")
    for found, wanted in zip(loaded.ids(4, 3, cpu), RAGGED.ids(4, 3, cpu), strict=True):
        assert torch.equal(found, wanted)


def test_a_file_holds_no_tables_that_a_kernel_would_trust():
    """Only the ids: what follows from them is made again, whatever the file says."""
    assert b"FoldTables" not in _saved(RAGGED).getvalue()
    assert b"FoldTables" not in pickle.dumps(RAGGED)


def test_ids_beyond_int64_survive():
    huge = mxm.Folds.from_ids(*[torch.tensor([2**63 + 5, 1], dtype=torch.uint64)] * 2)
    assert torch.equal(huge.pairs(2, 2)[0], torch.load(_saved(huge)).pairs(2, 2)[0])


def test_a_worker_sends_the_tables_too():
    """The training process does not make them again."""
    queue = mp.get_context("spawn").SimpleQueue()
    queue.put(RAGGED)
    made = queue.get()
    assert isinstance(made, mxm.Folds)
    for name, wanted in _tables(RAGGED).items():
        assert torch.equal(torch.as_tensor(_tables(made)[name]), torch.as_tensor(wanted)), name
