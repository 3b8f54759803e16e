"""Several captions of an image for open_clip's training program, from csv files or shards.

open_clip's csv has a row for each caption, so an image with five captions is there five times.
Here rows of one image path become one item; its place in the file is the instance id, the same
on every rank. ``shards`` does the same for webdataset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from mxm_kernels.folds import Folds
from mxm_kernels.open_clip.collate import Item, collate
from mxm_kernels.open_clip.flags import check_size
from mxm_kernels.open_clip.shards import group_shards

if TYPE_CHECKING:
    from argparse import Namespace


class GroupedCaptions(Dataset[Item]):
    """The images of open_clip's CsvDataset, each once and with all its captions."""

    def __init__(self, rows: Any) -> None:
        """``rows`` has ``images`` (paths), ``captions`` and ``tokenize``; an item is a pair."""
        groups: dict[str, list[int]] = {}
        for row, path in enumerate(rows.images):
            groups.setdefault(str(path), []).append(row)
        self.rows, self.groups = rows, list(groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Item:
        group = self.groups[index]
        image, _ = self.rows[group[0]]
        return image, self.rows.tokenize([str(self.rows.captions[row]) for row in group]), index


class GroupedLoader:
    """What the program iterates: (images, texts).

    ``folds`` are those of the last ``together`` batches, whose features the program joins under
    ``--accum-freq``: an id means the same instance in all of them.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor, Folds]],
        num_batches: int,
        num_samples: int,
        together: int = 1,
    ) -> None:
        self.batches = batches
        self.num_batches = num_batches
        self.num_samples = num_samples
        self.together = together
        self.folds: Folds | None = None

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        last: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.together)
        for images, texts, folds in self.batches:
            self.folds = folds
            if self.together > 1:
                last.append(folds.ids(len(images), len(texts), torch.device("cpu")))
                self.folds = Folds.from_ids(*map(torch.cat, zip(*last, strict=True)))
            yield images, texts


def grouped(args: Namespace, data: Any, tokenize: Callable[[list[str]], Tensor]) -> Any:
    """open_clip's DataInfo of the training data, with the captions of an image together.

    ``args`` have passed :func:`mxm_kernels.open_clip.flags.check_flags`: the data is one of both.

    Raises:
        ImportError: as :func:`group_shards`.
        ValueError: the data has fewer images than a step needs.
    """
    from webdataset import WebLoader

    loader = data.dataloader
    sampler: DistributedSampler[Item] | None = None
    if isinstance(loader, WebLoader):
        group_shards(loader, tokenize, args.batch_size)
        num_batches, num_samples = loader.num_batches, loader.num_samples
    else:
        dataset = GroupedCaptions(loader.dataset)
        sampler = DistributedSampler(dataset) if args.distributed else None
        loader = _batches(args, dataset, sampler)
        num_batches, num_samples = len(loader), len(dataset)
    check_size(args, num_batches, num_samples, args.world_size)
    together = GroupedLoader(loader, num_batches, num_samples, args.accum_freq)
    return replace(data, dataloader=together, sampler=sampler)


def _batches(
    args: Namespace, dataset: GroupedCaptions, sampler: DistributedSampler[Item] | None
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=sampler is None,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
    )
