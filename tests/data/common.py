"""Multifold batches as this package makes them, to compare with what comes through a host."""

from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader

from mxm_kernels.data import MultifoldBatchSampler, MultifoldDataset, collate_multifold

SEED, BATCH, INSTANCES = 3, 3, 14  # four batches an epoch, two of each of two processes


def dataset():
    """Ragged instances. The dataset draws two images and one text of each, by the epoch."""
    counts = np.arange(INSTANCES) % 4 + 1
    images = [(i, n) for i in range(INSTANCES) for n in range(counts[i])]
    texts = [(i, n) for i in range(INSTANCES) for n in range(5 - counts[i])]
    ids = ([i for i, _ in side] for side in (images, texts))
    return MultifoldDataset(torch.tensor(images), torch.tensor(texts), *ids, views=2, captions=1)


def sampler(**options):
    return MultifoldBatchSampler(INSTANCES, **{"batch_size": BATCH, "seed": SEED, **options})


def loader(batch_sampler, kind=DataLoader, **options):
    return kind(dataset(), batch_sampler=batch_sampler, collate_fn=collate_multifold, **options)


def content(batch):
    """What a batch holds, as it can be compared; the folds are those of the ids."""
    assert batch.folds.tables(len(batch.images), len(batch.texts), torch.device("cpu")).pairs > 0
    return batch.images.tolist(), batch.texts.tolist()


def expected(epoch, **options):
    """The batches of an epoch, from the sampler alone."""
    alone = sampler(**options)
    alone.set_epoch(epoch)
    return [content(batch) for batch in loader(alone)]


def instances(batches):
    """The instances of an epoch's batches, by their images."""
    return [i for images, _ in batches for i in {instance for instance, _ in images}]


def check_epochs(epochs, parts=None):
    """Batches of epochs 0, 1, ... are the package's own and differ from epoch to epoch.

    ``parts`` are the same epochs' batches of the other processes.
    """
    for batches, following in pairwise(epochs):
        assert batches != following
    for epoch in range(len(epochs)):
        seen = [i for part in (epochs, *(parts or ())) for i in instances(part[epoch])]
        assert len(seen) == len(set(seen)), "an instance is in two batches of an epoch"
