"""Data sets of instances with several images and several captions."""

from ..config import Config, OptionError
from .coco import load_coco
from .emoji import load_emoji
from .flickr30k import load_flickr30k
from .instances import Splits, random_splits


def load_splits(config: Config) -> Splits:
    """Load the data set that the configuration names."""
    if config.data == "emoji":
        if config.data_root:
            raise OptionError("--data_root: the emoji come from packages, not from a folder")
        splits = random_splits(load_emoji(), config.split_seed)
    elif config.data == "flickr30k":
        splits = load_flickr30k(config.data_root, config.split_seed)
    elif config.data == "coco":
        splits = load_coco(config.data_root, config.split_seed)
    else:
        raise OptionError(f"--data: {config.data!r} is none of emoji, flickr30k, coco")
    for name in ("train", config.eval_split):
        if not getattr(splits, name):
            raise OptionError(f"--data {config.data}: the {name} split is empty")
    return splits.limited(config.limit)
