"""Karpathy's split files (dataset_flickr30k.json, dataset_coco.json)."""

import json
from pathlib import Path
from typing import Any

from ..config import OptionError
from .instances import ImageFile, Instance, Splits

# COCO's "restval" are the validation images that the split file adds to the training set.
SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def load_karpathy(path: Path, images: Path) -> Splits:
    """Read a split file; image files are looked for under `images`, and decoded on access."""
    splits: dict[str, list[Instance]] = {"train": [], "val": [], "test": []}
    for entry in read_json(path, "images")["images"]:
        captions = tuple(s["raw"].strip() for s in entry["sentences"] if s["raw"].strip())
        file = images / entry.get("filepath", "") / entry["filename"]
        if captions:
            instance = Instance(entry["filename"], (ImageFile(require(file)),), captions)
            splits[SPLIT_OF[entry["split"]]].append(instance)
    return Splits(**splits)


def read_json(path: Path, key: str) -> Any:
    """JSON object of a file; it must have `key`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OptionError(f"--data_root: {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or key not in content:
        raise OptionError(f"--data_root: {path} has no {key!r}")
    return content


def require(path: Path) -> Path:
    """Return a path that exists, else say which option pointed to it."""
    if not path.exists():
        raise OptionError(f"--data_root: {path} does not exist")
    return path


def require_folder(root: str) -> Path:
    """Return the data folder that the user named."""
    if not root:
        raise OptionError("--data_root: name the folder of the data set")
    if not Path(root).is_dir():
        raise OptionError(f"--data_root: {root} is not a folder")
    return Path(root)


def first_existing(root: Path, *names: str) -> Path:
    """First of some paths under `root` that exists."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise OptionError(f"--data_root: {root} has none of {', '.join(names)}")
