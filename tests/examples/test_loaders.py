import json

import pytest

from examples.data import load_splits
from examples.data.captions import load_coco, load_flickr30k
from examples.finetune.config import Config
from examples.finetune.inputs import load_instances
from examples.options import OptionError
from tests.support.captioned import draw, karpathy


def test_flickr30k_with_karpathys_splits(tmp_path):
    draw(tmp_path / "flickr30k-images", "1.jpg", "2.jpg", "3.jpg")
    entries = [("1.jpg", "train", 5), ("2.jpg", "val", 5), ("3.jpg", "test", 4)]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(karpathy(entries)))
    splits = load_flickr30k(str(tmp_path))
    assert [len(getattr(splits, s)) for s in ("train", "val", "test")] == [1, 1, 1]
    assert splits.train[0].captions == tuple(f"1.jpg {i}" for i in range(5))
    assert len(splits.test[0].captions) == 4
    assert splits.val[0].images[0].open().mode == "RGB"


def test_flickr30k_with_the_csv_of_the_distribution(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    draw(tmp_path / "flickr30k_images", *names)
    rows = ["image_name| comment_number| comment"]
    rows += [f'{name}| {i}| A "dog" | runs , {i} .' for name in names for i in range(5)]
    rows[3] = "0.jpg| 2   A dog runs ."  # as in the distributed file: a separator is missing
    (tmp_path / "results.csv").write_text("\n".join(rows))
    splits = load_flickr30k(str(tmp_path), split_seed=1)
    everything = splits.train + splits.val + splits.test
    assert [len(splits.val), len(splits.test), len(everything)] == [2, 2, 20]
    captions = {i.name: i.captions for i in everything}
    assert captions["7.jpg"][0] == 'A "dog" | runs , 0 .'
    assert len(captions["0.jpg"]) == 4


def test_flickr30k_with_the_token_file(tmp_path):
    names = [f"{i}.jpg" for i in range(10)]
    draw(tmp_path / "images", *names)
    lines = [f"{name}#{i}\tCaption {i} ." for name in names for i in range(5)]
    (tmp_path / "results_20130124.token").write_text("\n".join(lines))
    splits = load_flickr30k(str(tmp_path))
    assert len(splits.test) == 1
    assert splits.test[0].captions[4] == "Caption 4 ."


def test_coco_as_distributed(tmp_path):
    for split, count in (("train", 3), ("val", 4)):
        names = [f"{i:012d}.jpg" for i in range(count)]
        draw(tmp_path / f"{split}2017", *names)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 10 * i + j, "image_id": i, "caption": f"caption {j} of {i}\n"}
                for i in range(count)
                for j in range(5 + i % 3)
            ],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"captions_{split}2017.json"
        path.write_text(json.dumps(content))
    splits = load_coco(str(tmp_path))
    assert [len(i.captions) for i in splits.train] == [5, 6, 7]
    assert splits.train[1].captions[5] == "caption 5 of 1"
    assert len(splits.val) == len(splits.test) == 2
    assert not {i.name for i in splits.val} & {i.name for i in splits.test}


def test_coco_with_karpathys_splits(tmp_path):
    draw(tmp_path / "val2014", "a.jpg", "b.jpg")
    entries = [("a.jpg", "restval", 5), ("b.jpg", "test", 6)]
    content = karpathy(entries, filepath="val2014")
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    splits = load_coco(str(tmp_path))
    assert len(splits.train[0].captions) == 5
    assert splits.test[0].images[0].open().size == (12, 10)
    config = Config(data="coco", data_root=str(tmp_path), limit=1)
    assert [len(part) for part in load_instances(config)] == [1, 1]


@pytest.mark.parametrize("data", ["flickr30k", "coco"])
def test_errors_name_the_argument(data, tmp_path):
    with pytest.raises(OptionError, match="--data_root"):
        load_splits(data)
    with pytest.raises(OptionError, match=r"--data_root: .*nowhere"):
        load_splits(data, str(tmp_path / "nowhere"))
    with pytest.raises(OptionError, match=r"--data_root: .* has none of"):
        load_splits(data, str(tmp_path))


def test_broken_files_are_named(tmp_path):
    draw(tmp_path / "images", "1.jpg")
    file = tmp_path / "dataset_flickr30k.json"
    file.write_text("{")
    with pytest.raises(OptionError, match=r"--data_root: .*dataset_flickr30k.json is not JSON"):
        load_flickr30k(str(tmp_path))
    file.write_text("{}")
    with pytest.raises(OptionError, match="has no 'images'"):
        load_flickr30k(str(tmp_path))
    file.write_text(json.dumps(karpathy([("2.jpg", "train", 5)])))
    with pytest.raises(OptionError, match=r"2.jpg does not exist"):
        load_flickr30k(str(tmp_path))
    file.write_text(json.dumps(karpathy([("1.jpg", "train", 5)])))
    with pytest.raises(OptionError, match="test split is empty"):
        load_instances(Config(data="flickr30k", data_root=str(tmp_path)))
