"""Which instances are in a batch, and the randomness that goes with each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mxm_kernels.checks import as_count


class InstanceKey(NamedTuple):
    """What the sampler asks a dataset for: an instance, and the randomness of its epoch."""

    instance: int  # its place in the dataset, from 0
    epoch: int = 0
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """The instance's random numbers in this epoch, for draws and for augmentation."""
        return np.random.default_rng((self.seed, self.epoch, self.instance))


class MultifoldBatchSampler(Sampler[list[InstanceKey]]):
    """Batches of B distinct instances, each instance at most once in an epoch.

    Every replica (process) has to be given the same arguments but ``rank``: the epoch's order is
    a function of seed and epoch, and each replica takes its part of every batch.

    Args:
        instances: number of instances of the dataset.
        batch_size: B, instances in a batch of one replica; a batch over all replicas has
            ``num_replicas`` times as many.
        seed: of the order, and of the draws that the dataset makes from its keys.
        shuffle: False takes the instances in their order.
        drop_last: leave out the rest that does not fill a batch of all replicas, where there
            would be fewer negatives. False makes a smaller last batch, whose parts differ by at
            most one instance between replicas.
        rank: this replica, from 0; ``torch.distributed.get_rank()``.
        num_replicas: ``torch.distributed.get_world_size()``. Leave both at their defaults where a
            library shares batches between processes by itself, as Accelerate does.

    Raises:
        TypeError, ValueError: an argument is not as described; an epoch would have no batch; the
            last batch has fewer instances than there are replicas.

    To go on in the middle of an epoch, after ``step`` batches in all:

    Example:
        >>> from mxm_kernels.data import MultifoldBatchSampler
        >>> sampler = MultifoldBatchSampler(instances=10, batch_size=3, seed=1)
        >>> step = 4  # of a checkpoint
        >>> epoch, start_batch = divmod(step, sampler.batches_per_epoch)
        >>> sampler.resume(epoch, start_batch)
        >>> len(sampler)
        2
    """

    def __init__(
        self,
        instances: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.instances = as_count("instances", instances, 1)
        self.batch_size = as_count("batch_size", batch_size, 1)
        self.seed = as_count("seed", seed, 0)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.num_replicas = as_count("num_replicas", num_replicas, 1)
        self.rank = as_count("rank", rank, 0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be below num_replicas={num_replicas}, got {rank}")
        rest = self.instances % self._shared_size
        if drop_last and not self.batches_per_epoch:
            raise ValueError(
                f"batch_size: {batch_size} for each of {num_replicas} replicas is more than the "
                f"{instances} instances, and drop_last=True leaves no batch"
            )
        if not drop_last and 0 < rest < self.num_replicas:
            raise ValueError(
                f"drop_last=False leaves {rest} instances to the last batch of {num_replicas} "
                "replicas, which need one each; use drop_last=True or another batch_size"
            )
        self._epoch, self._resumed = 0, (0, 0)

    @property
    def _shared_size(self) -> int:
        """Instances in a batch of all replicas."""
        return self.batch_size * self.num_replicas

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, the same for every replica."""
        whole, rest = divmod(self.instances, self._shared_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; without a call it is the same order again."""
        self._epoch = as_count("epoch", epoch, 0)

    def resume(self, epoch: int, start_batch: int) -> None:
        """Choose an epoch and leave out its first ``start_batch`` batches; later ones are whole.

        Count the batches in the training loop: workers read ahead, so the sampler cannot know.
        """
        if not 0 <= as_count("start_batch", start_batch, 0) <= self.batches_per_epoch:
            raise ValueError(
                f"start_batch must be at most the {self.batches_per_epoch} batches of an epoch, "
                f"got {start_batch}"
            )
        self.set_epoch(epoch)
        self._resumed = self._epoch, int(start_batch)

    @property
    def _start_batch(self) -> int:
        epoch, batch = self._resumed
        return batch if epoch == self._epoch else 0

    def __len__(self) -> int:
        return self.batches_per_epoch - self._start_batch

    def __iter__(self) -> Iterator[list[InstanceKey]]:
        return self._batches(self._epoch, self._start_batch)

    def _batches(self, epoch: int, start: int) -> Iterator[list[InstanceKey]]:
        order = np.arange(self.instances)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.instances)
        for batch in range(start, self.batches_per_epoch):
            shared = order[batch * self._shared_size : (batch + 1) * self._shared_size]
            mine = np.array_split(shared, self.num_replicas)[self.rank]
            yield [InstanceKey(int(index), epoch, self.seed) for index in mine]
