"""Several captions of an image for open_clip's training program, from its csv files.

open_clip's csv has a row for each caption, so an image with five captions is there five times.
Here rows of one image path become one item; its place in the file is the instance id, the same
on every rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from mxm_kernels.folds import Folds

if TYPE_CHECKING:
    from argparse import Namespace

Item = tuple[Tensor, Tensor, int]  # image, tokens of its captions (k, L), id


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


def collate(items: list[Item]) -> tuple[Tensor, Tensor, Folds]:
    """(B, 3, H, W) images, (N, L) tokens of all captions, and which belong together."""
    images, texts, ids = zip(*items, strict=True)
    counts = torch.tensor([len(tokens) for tokens in texts], device="cpu")
    image_ids = torch.tensor(ids, device="cpu")
    folds = Folds.from_ids(image_ids, image_ids.repeat_interleave(counts))
    return torch.stack(images), torch.cat(texts), folds


class GroupedLoader:
    """What the program iterates: (images, texts).

    ``folds`` are those of the last ``together`` batches, whose features the program joins under
    ``--accum-freq``: a place in the file is an id, so an instance is the same in all of them.
    """

    def __init__(self, batches: DataLoader, together: int = 1) -> None:
        self.batches = batches
        self.together = together
        self.folds: Folds | None = None
        self.num_batches = len(batches)
        self.num_samples = len(batches.dataset)  # type: ignore[arg-type]

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


def grouped(args: Namespace, data: Any) -> Any:
    """open_clip's DataInfo of a training csv, with the captions of an image together.

    Raises:
        ValueError: the data is no csv, or has fewer images than a step needs.
    """
    from open_clip_train.data import CsvDataset, DataInfo

    rows = data.dataloader.dataset
    if not isinstance(rows, CsvDataset):
        raise ValueError(
            "captions are grouped by the image paths of a csv, which a stream of shards does not "
            f"have: --dataset-type must be csv, got {args.dataset_type}"
        )
    dataset = GroupedCaptions(rows)
    sampler: DistributedSampler[Item] | None = None
    if args.distributed:
        sampler = DistributedSampler(dataset)
    batches = DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=sampler is None,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
    )
    if len(batches) < args.accum_freq:
        images = args.batch_size * args.accum_freq
        raise ValueError(
            f"a step takes {images} images of each process, --batch-size times --accum-freq, and "
            f"{args.train_data} has {len(dataset)} of them for {args.world_size} processes"
        )
    return DataInfo(GroupedLoader(batches, args.accum_freq), sampler)
