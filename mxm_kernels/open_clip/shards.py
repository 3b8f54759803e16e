"""Several captions of an image for open_clip's training program, from its webdataset shards.

A sample is an image and a ``txt`` with a caption on each line, the form in which CLIP_benchmark
writes COCO and Flickr30K. Samples with the bytes of one image are one instance, so an image that
stands in the shards once for each caption is no negative of itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from mxm_kernels.folds import Folds
from mxm_kernels.open_clip.collate import Item, collate

IMAGES = ("jpg", "png", "jpeg", "webp")  # the order in which open_clip looks for them


def group_shards(loader: Any, tokenize: Callable[[list[str]], Tensor], batch_size: int) -> None:
    """Let open_clip's WebLoader give batches of images, tokens of all captions, and folds.

    Shards, their shuffling and their division among ranks and workers stay open_clip's: only what
    stands behind the decoder is replaced.

    Raises:
        ImportError: the pipeline is not that of open_clip_torch 2.32 to 3.3.
    """
    import webdataset as wds

    (workers,) = loader.pipeline
    stages = workers.dataset.pipeline
    known = wds.select, wds.decode, wds.rename, wds.map_dict, wds.to_tuple, wds.batched
    if [getattr(stage, "f", None) for stage in stages[-6:]] != [stage.f for stage in known]:
        raise ImportError(
            "open_clip_train.data reads shards in another way than open_clip_torch 2.32 to 3.3: "
            "install one of these, or give --train-data a csv"
        )
    select, decode, rename, transform, *_ = stages[-6:]
    stages[-6:] = [
        select,
        wds.map(identify),
        decode,
        rename,
        wds.map_dict(image=transform.kw["image"], text=Captions(tokenize)),
        wds.to_tuple("image", "text", "__instance__"),
        FullBatches(batch_size),
    ]


def identify(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample with its instance id: 63 bits of a digest of the image, the same on every rank."""
    image = next(sample[kind] for kind in IMAGES if kind in sample)
    digest = hashlib.blake2b(image, digest_size=8).digest()
    return sample | {"__instance__": int.from_bytes(digest, "big") >> 1}


class Captions:
    """Tokens (k, L) of a text of k lines. No closure: workers may have to pickle it."""

    def __init__(self, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.tokenize = tokenize

    def __call__(self, text: str) -> Tensor:
        """Empty lines are no captions; a text without any other is one empty caption."""
        lines = [line.strip() for line in text.splitlines()]
        return self.tokenize([line for line in lines if line] or [""])


class FullBatches:
    """Batches of ``size`` samples; what is left at the end of the shards is dropped."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, samples: Iterable[Item]) -> Iterator[tuple[Tensor, Tensor, Folds]]:
        """What the collate function makes of each.

        Raises:
            ValueError: the samples do not fill one.
        """
        rest = iter(samples)
        items = list(islice(rest, self.size))
        if len(items) < self.size:  # the program would read the shards again, for ever
            raise ValueError(
                f"a batch takes {self.size} images, --batch-size, and the shards of one worker "
                f"have {len(items)}: lower --batch-size or --workers"
            )
        while len(items) == self.size:
            yield collate(items)
            items = list(islice(rest, self.size))
