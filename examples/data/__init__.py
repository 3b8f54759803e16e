"""Data sets of instances with several images and several captions."""

from ..errors import OptionError
from .captions import load_coco, load_flickr30k
from .emoji import load_emoji
from .instances import Splits, random_splits


def load_splits(data: str, root: str = "", split_seed: int = 0) -> Splits:
    """Load the data set "emoji", "flickr30k" or "coco"; the last two are in a folder."""
    if data == "flickr30k":
        return load_flickr30k(root, split_seed)
    if data == "coco":
        return load_coco(root, split_seed)
    if data != "emoji":
        raise OptionError(f"--data: {data!r} is none of emoji, flickr30k, coco")
    if root:
        raise OptionError("--data_root: the emoji come from packages, not from a folder")
    return random_splits(load_emoji(), split_seed)
