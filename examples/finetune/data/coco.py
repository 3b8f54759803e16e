"""COCO captions: one image and five to seven captions of each instance.

The folder is laid out as COCO distributes it: `annotations/captions_train2017.json` and
`annotations/captions_val2017.json` (or 2014) beside `train2017/` and `val2017/`. The validation
images are halved at random into validation and test, as the test captions are not public. Where
Karpathy's `dataset_coco.json` is there, with the 2014 images, its splits are used instead.

With the packaged encoders, `--unfreeze top` would keep some 12 GB of activations of the 600,000
captions in memory; `--unfreeze all` and open_clip models keep none, `heads` about 1.5 GB.
"""

from collections import defaultdict
from pathlib import Path

from .instances import ImageFile, Instance, Splits, random_splits
from .karpathy import first_existing, load_karpathy, read_json, require, require_folder


def load_coco(root: str, split_seed: int = 0) -> Splits:
    """Read COCO captions from their folder."""
    folder = require_folder(root)
    if (folder / "dataset_coco.json").exists():
        return load_karpathy(folder / "dataset_coco.json", folder)
    train_file = first_existing(
        folder, "annotations/captions_train2017.json", "annotations/captions_train2014.json"
    )
    year = train_file.stem[-4:]
    val_file = require(folder / "annotations" / f"captions_val{year}.json")
    held_out = load_captions(val_file, require(folder / f"val{year}"))
    halves = random_splits(held_out, split_seed, val=0.5, test=0.5)
    train = load_captions(train_file, require(folder / f"train{year}"))
    return Splits(train=train, val=halves.val, test=halves.test + halves.train)


def load_captions(path: Path, images: Path) -> list[Instance]:
    """Instances of a captions_*.json, in the order of its images; those without captions go."""
    content = read_json(path, "annotations")
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["caption"].strip():
            captions[annotation["image_id"]].append(annotation["caption"].strip())
    return [
        Instance(
            image["file_name"],
            (ImageFile(require(images / image["file_name"])),),
            tuple(captions[image["id"]]),
        )
        for image in content["images"]
        if image["id"] in captions
    ]
