"""Flickr30K: one image and five captions of each instance.

The folder holds `flickr30k-images/` (or `flickr30k_images/`, `images/`) and either Karpathy's
`dataset_flickr30k.json`, whose splits are then used, or the distribution's own `results.csv`
(columns image_name, comment_number, comment, separated by '|') or `results_20130124.token`, which
are split at random: 1,000 images for validation, 1,000 for test (at most a tenth each).
"""

import csv
from collections import defaultdict
from pathlib import Path

from ..config import OptionError
from .instances import ImageFile, Instance, Splits, random_splits
from .karpathy import first_existing, load_karpathy, require, require_folder

HELD_OUT = 1000


def load_flickr30k(root: str, split_seed: int = 0) -> Splits:
    """Read Flickr30K from its folder."""
    folder = require_folder(root)
    images = first_existing(folder, "flickr30k-images", "flickr30k_images", "images")
    table = first_existing(
        folder, "dataset_flickr30k.json", "results.csv", "results_20130124.token"
    )
    if table.suffix == ".json":
        return load_karpathy(table, images)
    captions = read_csv(table) if table.suffix == ".csv" else read_token(table)
    instances = [
        Instance(name, (ImageFile(require(images / name)),), tuple(texts))
        for name, texts in captions.items()
    ]
    share = min(0.1, HELD_OUT / max(len(instances), 1))
    return random_splits(instances, split_seed, val=share, test=share)


def read_csv(path: Path) -> dict[str, list[str]]:
    """Captions by image of results.csv."""
    captions: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
        next(rows, None)
        # The distributed file has one row, of image 2199200615.jpg, whose second separator is
        # missing; a row without three fields has no caption to offer.
        for row in rows:
            if len(row) >= 3 and row[2].strip():
                captions[row[0].strip()].append("|".join(row[2:]).strip())
    return check(path, captions)


def read_token(path: Path) -> dict[str, list[str]]:
    """Captions by image of results_20130124.token, whose lines are 'NAME#NUMBER<tab>CAPTION'."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, caption = line.partition("\t")
        if caption.strip():
            captions[key.rpartition("#")[0]].append(caption.strip())
    return check(path, captions)


def check(path: Path, captions: dict[str, list[str]]) -> dict[str, list[str]]:
    """Refuse a file without captions."""
    if not captions:
        raise OptionError(f"--data_root: {path} has no captions")
    return captions
