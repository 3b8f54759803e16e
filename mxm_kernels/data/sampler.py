"""The batch sampler: which instances are in a batch, and the random numbers of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mxm_kernels.checks import as_count


class InstanceKey(NamedTuple):
    """What the sampler asks a data set for: an instance, and the seed of its random numbers."""

    instance: int  # its place in the dataset, from 0
    epoch: int = 0
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """A generator for the instance in this epoch, for draws and augmentation."""
        return np.random.default_rng((self.seed, self.epoch, self.instance))


class MultifoldBatchSampler(Sampler[list[InstanceKey]]):
    """Batches of B different instances, each instance at most once in an epoch.

    Use it as ``DataLoader(batch_sampler=...)``. The order of an epoch is a function of seed and
    epoch, and each replica (process) takes its part of every batch. So all replicas need the same
    arguments, except ``rank``.

    Args:
        instances: number of instances of the data set.
        batch_size: B, number of instances in a batch of one replica. A batch over all replicas has
            ``num_replicas`` times as many.
        seed: seed of the order, and of the draws that the data set makes from its keys.
        shuffle: False takes the instances in their order.
        drop_last: True leaves out the last instances that do not fill a batch of all replicas; it
            would have fewer negatives. False makes a smaller last batch, whose parts differ by at
            most one instance between replicas.
        rank: this replica, from 0; ``torch.distributed.get_rank()``.
        num_replicas: number of replicas; ``torch.distributed.get_world_size()``. Leave ``rank`` and
            ``num_replicas`` at their defaults where a library shares batches between processes by
            itself, as Accelerate does.

    Raises:
        TypeError, ValueError: an argument is not as described; an epoch would have no batch; the
            last batch has fewer instances than there are replicas; a library makes the sampler
            anew around a sampler of its own, as Lightning does unless it is told not to.

    Lightning, Accelerate and Hugging Face's Trainer choose the epoch themselves. torchdata's
    ``StatefulDataLoader`` saves the place in an epoch. Without it, a run that stopped after
    ``step`` batches in all goes on like this:

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
        if isinstance(instances, Sampler):
            raise TypeError(
                f"instances must be an integer, got {type(instances).__name__}: a library made the "
                "batch sampler anew around a sampler of its own; tell it not to, as Lightning's "
                "Trainer(use_distributed_sampler=False) does, and give rank and num_replicas. For "
                "its predict() use DataLoader(dataset, batch_size=...)"
            )
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
        self._reached = 0, 0  # epoch, and how many of its batches have been given out
        self._goes_on = False  # the next iteration starts where the last one was

    @property
    def sampler(self) -> MultifoldBatchSampler:
        """The sampler itself. Lightning and Accelerate look here for ``set_epoch``."""
        return self

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
        """Choose the epoch of the next iteration. Without a call it has the same order again."""
        epoch, (place, batch) = as_count("epoch", epoch, 0), self._reached
        if self._goes_on and epoch != place:
            warnings.warn(
                f"set_epoch({epoch}) gives up the position to resume from, batch {batch} of epoch "
                f"{place}: to resume there, let the library that counts the epochs start with it",
                stacklevel=2,
            )
            self._goes_on = False
        self._epoch = epoch

    def resume(self, epoch: int, start_batch: int) -> None:
        """Choose an epoch and leave out its first ``start_batch`` batches; later epochs are whole.

        Count the batches in the training loop. Workers read ahead, so the sampler does not know how
        many of them were trained on.
        """
        if not 0 <= as_count("start_batch", start_batch, 0) <= self.batches_per_epoch:
            raise ValueError(
                f"start_batch must be at most the {self.batches_per_epoch} batches of an epoch, "
                f"got {start_batch}"
            )
        self._epoch = as_count("epoch", epoch, 0)
        self._resumed = self._reached = self._epoch, int(start_batch)
        self._goes_on = start_batch < self.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """The epoch and how many of its batches were given out, for torchdata.

        ``StatefulDataLoader`` of torchdata allows for what workers read ahead. Under another loader
        with workers the state is ahead of the training step. Count the batches there, and call
        :meth:`resume`.

        Example:
            >>> from mxm_kernels.data import MultifoldBatchSampler
            >>> sampler = MultifoldBatchSampler(instances=10, batch_size=3)
            >>> batches = iter(sampler)
            >>> first = next(batches)
            >>> other = MultifoldBatchSampler(instances=10, batch_size=3)
            >>> other.load_state_dict(sampler.state_dict())
            >>> list(other) == list(batches)
            True
        """
        epoch, batch = self._reached
        return {"epoch": self._epoch, "batch": batch * (epoch == self._epoch), **self._order()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration go on where ``state_dict`` was taken; later epochs are whole.

        ``len()`` stays that of a whole epoch. The state of a finished epoch changes nothing.

        Raises:
            TypeError: ``state_dict`` is not what :meth:`state_dict` returns.
            ValueError: it was taken from a sampler with another order of batches.
        """
        order = self._order()
        if not isinstance(state_dict, Mapping) or not {"epoch", "batch", *order} <= {*state_dict}:
            raise TypeError("state_dict must be what MultifoldBatchSampler.state_dict() returned")
        for name, mine in order.items():
            if state_dict[name] != mine:
                raise ValueError(
                    f"state_dict is of a sampler with {name}={state_dict[name]}, got one with "
                    f"{name}={mine}: their batches differ"
                )
        epoch = as_count("state_dict's epoch", state_dict["epoch"], 0)
        batch = as_count("state_dict's batch", state_dict["batch"], 0)
        if batch < self.batches_per_epoch:
            self._epoch, self._reached, self._goes_on = epoch, (epoch, batch), True

    def _order(self) -> dict[str, Any]:
        """The arguments that decide the batches of an epoch, besides its number."""
        return {
            "instances": self.instances,
            "instances_per_batch": self._shared_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    @property
    def _start_batch(self) -> int:
        epoch, batch = self._resumed
        return batch if epoch == self._epoch else 0

    def __len__(self) -> int:
        return self.batches_per_epoch - self._start_batch

    def __iter__(self) -> Iterator[list[InstanceKey]]:
        # The epoch is read when the first batch is asked for: Lightning and torchdata make the
        # iterator of a resumed run before they choose its epoch.
        start = self._reached[1] if self._goes_on else self._start_batch
        self._goes_on = False
        epoch, order = self._epoch, np.arange(self.instances)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.instances)
        for batch in range(start, self.batches_per_epoch):
            shared = order[batch * self._shared_size : (batch + 1) * self._shared_size]
            mine = np.array_split(shared, self.num_replicas)[self.rank]
            self._reached = epoch, batch + 1
            yield [InstanceKey(int(index), epoch, self.seed) for index in mine]
            if self._epoch != epoch:
                # Lightning does it to a resumed run: its workers have read ahead by then.
                warnings.warn(
                    f"set_epoch({self._epoch}) came after the first batches of epoch {epoch} had "
                    "been read: this iteration stays in that epoch; call it before iter(loader)",
                    stacklevel=2,
                )
