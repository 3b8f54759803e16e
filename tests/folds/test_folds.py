"""Folds: any ids, any order; the sorted vectors against loops over pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, Dataset

from mxm_kernels import Folds
from mxm_kernels.folds.make import tables_without_pairs

CPU = torch.device("cpu")
ids = st.lists(st.integers(0, 5), max_size=12)


@given(ids, ids)
def test_tables_list_every_pair_in_both_orders(image_ids, text_ids):
    tables = Folds.from_ids(image_ids, text_ids).tables(len(image_ids), len(text_ids), CPU)
    pairs = [(i, j) for i, a in enumerate(image_ids) for j, b in enumerate(text_ids) if a == b]
    assert list(zip(tables.pair_images.tolist(), tables.pair_texts.tolist(), strict=True)) == pairs
    by_text = sorted(range(len(pairs)), key=lambda p: pairs[p][::-1])
    assert tables.text_slots.tolist() == by_text
    assert tables.slot_places[tables.text_slots].tolist() == list(range(len(pairs)))
    images = len(image_ids)
    owners = [i for i, _ in pairs] + [images + pairs[p][1] for p in by_text]
    assert tables.owners.tolist() == owners
    counts = [owners.count(row) for row in range(images + len(text_ids))]
    assert tables.offsets[0] == 0 and tables.offsets.diff().tolist() == counts
    for i, j in pairs:
        assert pairs[tables.offsets[i] + tables.text_positions[j]] == (i, j)
        assert tables.image_groups[i] == tables.text_groups[j]
    assert tables.images_with_positive == len({i for i, _ in pairs})
    assert tables.texts_with_positive == len({j for _, j in pairs})
    assert tables.images_with_one_positive == sum(count == 1 for count in counts[:images])


@pytest.mark.parametrize(("views", "captions", "instances"), [(6, 5, 4), (1, 1, 3), (1, 5, 1)])
def test_uniform_is_the_same_as_its_ids(views, captions, instances):
    image_ids = [k for k in range(instances) for _ in range(views)]
    text_ids = [k for k in range(instances) for _ in range(captions)]
    rows = instances * views, instances * captions
    uniform = Folds.uniform(views, captions).tables(*rows, CPU)
    from_ids = Folds.from_ids(image_ids, text_ids).tables(*rows, CPU)
    for name, value in vars(from_ids).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(uniform, name), value), name
            assert getattr(uniform, name).dtype == value.dtype, name
        elif name != "kept":
            assert getattr(uniform, name) == value, name
    assert uniform.kept and not from_ids.kept


def test_tables_that_follow_from_sizes_are_kept_but_not_of_tensors_that_are_none():
    with torch.inference_mode():
        tables = tables_without_pairs(4, 6, CPU)
    assert tables.kept and tables.pairs == 0 and not tables.image_groups.is_inference()
    assert tables_without_pairs(4, 6, CPU) is tables
    assert tables_without_pairs(6, 4, CPU) is not tables
    with FakeTensorMode():
        assert not tables_without_pairs(4, 6, CPU).kept
        assert not Folds.uniform(2, 3).tables(4, 6, CPU).kept


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32],
    ids=str,
)
def test_integer_tensors_of_any_dtype(dtype):
    folds = Folds.from_ids(torch.tensor([1, 2, 1]).to(dtype), torch.tensor([2, 1]).to(dtype))
    assert folds.tables(3, 2, CPU).pairs == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_arrays(dtype):
    folds = Folds.from_ids(np.array([7, 8, 7], dtype), np.array([7], dtype))
    assert folds.tables(3, 1, CPU).pairs == 2


def test_huge_ids_stay_distinct():
    big = np.array([2**64 - 1, 2**63, 0], np.uint64)
    assert Folds.from_ids(big, big).tables(3, 3, CPU).pairs == 3
    assert Folds.from_ids(big[:2], [0, 1]).tables(2, 2, CPU).pairs == 0
    mixed = [2**64 - 1, 7, 2**63]
    assert Folds.from_ids(mixed, mixed).tables(3, 3, CPU).pairs == 3
    assert Folds.from_ids(mixed, [7, 8]).tables(3, 2, CPU).pairs == 1
    assert Folds.from_ids(mixed, big).tables(3, 3, CPU).pairs == 2


def test_folds_without_a_positive_pair_exist():
    folds = Folds.from_ids([1, 2], [3])
    assert folds.tables(2, 1, CPU).pairs == 0
    assert repr(folds) == "Folds(images=2, texts=1, positives=0)"


def test_to_moves_every_vector():
    folds = Folds.from_ids([1, 2], [2, 1]).to("meta")
    tables = folds.tables(2, 2, torch.device("meta"))
    assert all(v.is_meta for v in vars(tables).values() if isinstance(v, torch.Tensor))
    assert Folds.uniform(2, 3).to("meta").tables(2, 3, CPU).pairs == 6


class _Instances(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return k


def _collate(instances):
    image_ids = [k for k in instances for _ in range(k + 1)]
    return Folds.from_ids(image_ids, instances), len(image_ids)


def test_built_in_the_workers_of_a_loader():
    loader = DataLoader(_Instances(), batch_size=2, num_workers=1, collate_fn=_collate)
    assert [folds.tables(rows, 2, CPU).pairs for folds, rows in loader] == [3, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_by_a_loader():
    loader = DataLoader(_Instances(), batch_size=2, collate_fn=_collate, pin_memory=True)
    folds, rows = next(iter(loader))
    assert folds.tables(rows, 2, CPU).pair_images.is_pinned()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Folds.uniform(0, 5), ValueError, "views must be an integer >= 1, got 0"),
        (lambda: Folds.uniform(6, 2.0), ValueError, "captions must be an integer >= 1, got 2.0"),
        (lambda: Folds.uniform(True, 1), ValueError, "views must be an integer >= 1, got True"),
        (lambda: Folds.from_ids([1.5], [1]), TypeError, "image_ids must hold integers.*float64"),
        (
            lambda: Folds.from_ids([1], torch.tensor([1.0])),
            TypeError,
            "text_ids must hold integers.*float32",
        ),
        (
            lambda: Folds.from_ids([1], torch.tensor([True])),
            TypeError,
            "text_ids must hold integers.*bool",
        ),
        (
            lambda: Folds.from_ids(np.array([2**63], np.uint64), [-1]),
            ValueError,
            "image_ids has uint64 ids of 2.*the other side must be uint64",
        ),
        (
            lambda: Folds.from_ids([-(2**63)], [2**63]),
            ValueError,
            "text_ids has uint64 ids of 2.*the other side must be uint64",
        ),
        (
            lambda: Folds.from_ids([-1, 2**63], [1]),
            ValueError,
            r"image_ids must be from -2.*or from 0 to 2.*got -1 to 9223372036854775808",
        ),
        (
            lambda: Folds.from_ids([1], [2**64, 3]),
            ValueError,
            "text_ids must be from -2.*got 3 to 18446744073709551616",
        ),
        (
            lambda: Folds.from_ids([1, 2**63], [-1]),
            ValueError,
            "image_ids has uint64 ids of 2.*the other side must be uint64",
        ),
        (lambda: Folds.from_ids([2**63, 1.5], [1]), TypeError, "image_ids must hold integers"),
        (lambda: Folds.from_ids([1], [[1], [1, 2]]), ValueError, "text_ids must be one-dim"),
        (lambda: Folds.from_ids([[1]], [1]), ValueError, r"image_ids must be one-dim.*\(1, 1\)"),
        (
            lambda: Folds.from_ids(torch.tensor([1], device="meta"), [1]),
            ValueError,
            "one device, got meta and cpu",
        ),
        (lambda: Folds.from_ids([1], [1]).tables(2, 1, CPU), ValueError, "2 rows.*got 1 image ids"),
        (lambda: Folds.uniform(2, 2).tables(3, 2, CPU), ValueError, "2 image rows.*got 3 rows"),
        (lambda: Folds.uniform(2, 2).tables(4, 2, CPU), ValueError, "every instance"),
        (
            lambda: Folds.from_ids([1], [1]).to("meta").tables(1, 1, CPU),
            ValueError,
            r"on the device of the features, cpu, got meta; call folds.to\(device\)",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_a_caller_writes_into_pairs_and_ids_changes_no_folds():
    uniform = Folds.uniform(2, 1)
    for rows in uniform.pairs(4, 2):
        rows += 100
    assert [rows.tolist() for rows in uniform.pairs(4, 2)] == [[0, 1, 2, 3], [0, 0, 1, 1]]
    image_ids, text_ids = torch.tensor([3, 4]), torch.tensor([4])
    ragged = Folds.from_ids(image_ids, text_ids)
    image_ids.zero_()
    text_ids.zero_()
    for rows in ragged.pairs(2, 1):
        rows += 100
    assert [rows.tolist() for rows in ragged.pairs(2, 1)] == [[1], [0]]
    assert [ids.tolist() for ids in ragged.ids(2, 1, CPU)] == [[3, 4], [4]]


def test_the_class_itself_is_not_called():
    with pytest.raises(TypeError, match=r"Folds are made by Folds.uniform\(.*got Folds\(list"):
        Folds([0, 1], [0, 1])


@pytest.mark.parametrize("source", [(0, 5), (6, 5, 1), (6.0, 5.0), ([0, 1], [0, 1])])
def test_nor_with_a_tuple_that_uniform_would_refuse(source):
    with pytest.raises(TypeError, match=r"Folds are made by .*got Folds\(tuple"):
        Folds(source)


def test_only_uniform_folds_have_a_number_of_views():
    assert Folds.uniform(6, 5).views == 6
    with pytest.raises(ValueError, match="views: only folds made by Folds.uniform"):
        _ = Folds.from_ids([0, 1], [0, 1]).views
