"""Flickr30K and COCO: one image and five or more captions of each instance.

Flickr30K's folder holds `flickr30k-images/` (or `flickr30k_images/`, `images/`) and either
Karpathy's `dataset_flickr30k.json`, whose splits are then used, or the distribution's own
`results.csv` (columns image_name, comment_number, comment, separated by '|') or
`results_20130124.token`, which are split at random: 1,000 images for validation, 1,000 for test
(at most a tenth each).

COCO's folder is laid out as COCO distributes it: `annotations/captions_train2017.json` and
`annotations/captions_val2017.json` (or 2014) beside `train2017/` and `val2017/`. The validation
images are halved at random into validation and test, as the test captions are not public. Where
Karpathy's `dataset_coco.json` is there, with the 2014 images, its splits are used instead. With
the packaged encoders, `--unfreeze top` would keep some 12 GB of activations of the 600,000
captions in memory; `--unfreeze all` and open_clip models keep none, `heads` about 1.5 GB.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .instances import ImageFile, Instance, Splits, random_splits

HELD_OUT = 1000
# COCO's "restval" are the validation images that the split file adds to the training set.
SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def load_flickr30k(root: str, split_seed: int = 0) -> Splits:
    """Read Flickr30K from its folder."""
    images = existing(root, "flickr30k-images", "flickr30k_images", "images")
    table = existing(root, "dataset_flickr30k.json", "results.csv", "results_20130124.token")
    if table.suffix == ".json":
        return load_karpathy(table, images)
    instances = group(images, read_csv(table) if table.suffix == ".csv" else read_token(table))
    if not instances:
        raise OptionError(f"--data_root: {table} has no captions")
    share = min(0.1, HELD_OUT / len(instances))
    return random_splits(instances, split_seed, val=share, test=share)


def load_coco(root: str, split_seed: int = 0) -> Splits:
    """Read COCO captions from their folder."""
    years = ("annotations/captions_train2017.json", "annotations/captions_train2014.json")
    table = existing(root, "dataset_coco.json", *years)
    if table.name == "dataset_coco.json":
        return load_karpathy(table, Path(root))
    train, held_out = (load_annotations(root, part + table.stem[-4:]) for part in ("train", "val"))
    halves = random_splits(held_out, split_seed, val=0.5, test=0.5)
    return Splits(train=train, val=halves.val, test=halves.test + halves.train)


def load_karpathy(table: Path, images: Path) -> Splits:
    """Read a split file of Karpathy's; its images are looked for under `images`."""
    splits: dict[str, list[Instance]] = {"train": [], "val": [], "test": []}
    for entry in read_json(table, "images")["images"]:
        file = str(Path(entry.get("filepath", ""), entry["filename"]))
        captions = ((file, sentence["raw"]) for sentence in entry["sentences"])
        splits[SPLIT_OF[entry["split"]]] += group(images, captions)
    return Splits(**splits)


def load_annotations(root: str, part: str) -> list[Instance]:
    """Instances of a part of COCO, such as train2017, in the order of its images."""
    content = read_json(existing(root, f"annotations/captions_{part}.json"), "annotations")
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    images = content["images"]
    pairs = ((image["file_name"], text) for image in images for text in captions[image["id"]])
    return group(existing(root, part), pairs)


def group(images: Path, captions: Iterable[tuple[str, str]]) -> list[Instance]:
    """Instances of (image file under `images`, caption); empty captions are left out."""
    texts: dict[str, list[str]] = defaultdict(list)
    for name, caption in captions:
        if caption.strip():
            texts[name].append(caption.strip())
    return [Instance(n, (ImageFile(existing(images, n)),), tuple(t)) for n, t in texts.items()]


def read_csv(path: Path) -> Iterator[tuple[str, str]]:
    """Image names and captions of results.csv."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
        next(rows, None)
        # The distributed file has one row, of image 2199200615.jpg, whose second separator is
        # missing; a row without three fields has no caption to offer.
        yield from ((row[0].strip(), "|".join(row[2:])) for row in rows if len(row) >= 3)


def read_token(path: Path) -> Iterator[tuple[str, str]]:
    """Image names and captions of results_20130124.token: lines 'NAME#NUMBER<tab>CAPTION'."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, caption = line.partition("\t")
        yield key.rpartition("#")[0], caption


def read_json(path: Path, key: str) -> Any:
    """JSON object of a file; it must have `key`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OptionError(f"--data_root: {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or key not in content:
        raise OptionError(f"--data_root: {path} has no {key!r}")
    return content


def existing(root: str | Path, *names: str) -> Path:
    """First of some paths under a folder that exists."""
    if not str(root):
        raise OptionError("--data_root: name the folder of the data set")
    if not Path(root).is_dir():
        raise OptionError(f"--data_root: {root} is not a folder")
    for name in names:
        if Path(root, name).exists():
            return Path(root, name)
    missing = Path(root, names[0])
    several = f"{root} has none of {', '.join(names)}"
    raise OptionError(f"--data_root: {several if names[1:] else f'{missing} does not exist'}")
