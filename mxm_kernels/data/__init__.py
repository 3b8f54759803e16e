"""Batches of multifold data for a DataLoader: instances, their images and captions, their folds.

An instance is one thing with several images and captions, such as an object. Three parts work
together:

    sampler, in the main process     ->  keys (instance, epoch, seed)
    dataset, in the worker processes ->  an instance's images and texts, all of them or k drawn
    collate, in the worker processes ->  the stacked rows and their :class:`~mxm_kernels.Folds`

Everything random is a function of the key. So the number of workers, reading ahead and a resumed
run do not change what a training step sees.

Example:
    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> from mxm_kernels.data import MultifoldBatchSampler, MultifoldDataset, collate_multifold
    >>> images, texts = torch.randn(7, 3, 8, 8), torch.randn(6, 16)
    >>> dataset = MultifoldDataset(images, texts, [0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2])
    >>> sampler = MultifoldBatchSampler(len(dataset), batch_size=3, seed=1)
    >>> loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_multifold)
    >>> for epoch in range(2):
    ...     sampler.set_epoch(epoch)
    ...     for batch in loader:
    ...         print(batch.images.shape, batch.texts.shape, batch.folds)
    torch.Size([7, 3, 8, 8]) torch.Size([6, 16]) Folds(images=7, texts=6, positives=13)
    torch.Size([7, 3, 8, 8]) torch.Size([6, 16]) Folds(images=7, texts=6, positives=13)
"""

from torch.serialization import add_safe_globals

from mxm_kernels.data.collate import MultifoldBatch, collate_multifold
from mxm_kernels.data.dataset import MultifoldDataset, MultifoldItem
from mxm_kernels.data.sampler import InstanceKey, MultifoldBatchSampler

add_safe_globals([InstanceKey, MultifoldBatch, MultifoldItem])  # as in the package itself

__all__ = [
    "InstanceKey",
    "MultifoldBatch",
    "MultifoldBatchSampler",
    "MultifoldDataset",
    "MultifoldItem",
    "collate_multifold",
]
