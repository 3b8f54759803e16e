"""The ranks of a process group: what they agree on, and what they send each other.

The one place that uses torch.distributed. Every function here is called by every rank of the
group, in the same order; gloo on CPUs and NCCL on GPUs both have what is used: all_gather,
all_to_all, all_reduce, send and receive, and all_gather_object where ranks disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

_HEADER = 5  # numbers of the first exchange


@dataclass(frozen=True)
class Agreement:
    """What the first exchange of a step tells every rank."""

    images: tuple[int, ...]  # image rows of each rank
    texts: tuple[int, ...]  # text rows of each rank
    seed: int  # of rank 0


@dataclass(eq=False)
class Ranks:
    """A process group, this process's place in it, and what it sends to the others.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: this process is not in it.
    """

    group: Any

    def __post_init__(self) -> None:
        if not dist.is_available() or not isinstance(self.group, dist.ProcessGroup):
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup or None, got "
                f"{type(self.group).__name__}"
            )
        self.rank = dist.get_rank(self.group)
        if self.rank < 0:
            raise ValueError("process_group: this process is not in the group")
        self.world = dist.get_world_size(self.group)

    def agree(
        self,
        facts: dict[str, Any] | Exception,
        rows: tuple[int, int] = (0, 0),
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Agreement:
        """Compare what has to be the same on every rank, and learn the sizes of the shards.

        Args:
            facts: name and value of what has to be the same; or the error of this rank, which
                becomes an error of every rank.
            rows: image and text rows of this rank.
            seed: of this rank, below 2**63.
            device: of the features.

        Raises:
            ValueError: the ranks disagree; the message names on what, with the values.
            RuntimeError: another rank has an error; the message repeats it.
        """
        status = (1, 0) if isinstance(facts, Exception) else (0, _digest(facts))
        header = [*status, *rows, seed]
        mine = torch.tensor(header, dtype=torch.int64, device=device or self._device())
        every = mine.new_empty(self.world * len(header))
        dist.all_gather_into_tensor(every, mine, group=self.group)
        headers = every.view(self.world, -1).tolist()
        if any(h[0] for h in headers) or any(h[1] != headers[0][1] for h in headers):
            self._disagree(facts)
        return Agreement(tuple(h[2] for h in headers), tuple(h[3] for h in headers), headers[0][4])

    def _disagree(self, facts: dict[str, Any] | Exception) -> NoReturn:
        told: list[Any] = [None] * self.world
        mine = f"{type(facts).__name__}: {facts}" if isinstance(facts, Exception) else facts
        dist.all_gather_object(told, mine, group=self.group)
        if isinstance(facts, Exception):
            raise facts
        for rank, other in enumerate(told):
            if isinstance(other, str):
                raise RuntimeError(f"process_group: rank {rank} has an error: {other}")
        names = sorted({name for other in told for name in other})
        for name in names:
            values = [other.get(name) for other in told]
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"process_group: the ranks must agree on {name}, got {values[0]} on "
                        f"rank 0 and {value} on rank {rank}"
                    )
        raise AssertionError("two equal lists of facts have different digests")

    def _device(self) -> torch.device:
        nccl = "nccl" in str(dist.get_backend_config(self.group))
        return torch.device("cuda" if nccl else "cpu")

    def gather(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Rows of every rank, rank after rank: (counts[rank], ...) -> (sum(counts), ...).

        Shards are padded to the longest, so that all have one size on the wire.
        """
        most = max(counts)
        padded = rows.contiguous()
        if len(rows) < most:
            padded = rows.new_zeros((most, *rows.shape[1:]))
            padded[: len(rows)] = rows
        every = rows.new_empty((self.world * most, *rows.shape[1:]))
        if most:
            dist.all_gather_into_tensor(every, padded, group=self.group)
        if all(count == most for count in counts):
            return every
        shards = every.split(most)
        return torch.cat([shard[:count] for shard, count in zip(shards, counts, strict=True)])

    def exchange(self, rows: Tensor, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
        """Send ``send[r]`` of the rows to rank r; what came, rank after rank."""
        came = rows.new_empty((sum(receive), *rows.shape[1:]))
        dist.all_to_all_single(came, rows.contiguous(), list(receive), list(send), group=self.group)
        return came

    def ring(
        self, block: tuple[Tensor, ...], counts: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """The blocks of all ranks, this rank's first: (rank, its tensors).

        Blocks go from rank to rank around a ring; while one is worked on, the next comes in.
        ``counts`` are the rows of each rank's tensors.
        """
        owner = self.rank
        for step in range(self.world):
            pending, arriving, following = [], block, (owner - 1) % self.world
            if step < self.world - 1:
                arriving = tuple(t.new_empty((counts[following], *t.shape[1:])) for t in block)
                pending = self.pass_on(block, arriving)
            yield owner, block
            for work in pending:
                work.wait()
            owner, block = following, arriving

    def pass_on(self, leaving: tuple[Tensor, ...], arriving: tuple[Tensor, ...]) -> list[Any]:
        """Start to send to the next rank and to receive from the one before; what to wait for."""
        if self.world == 1:
            for mine, same in zip(leaving, arriving, strict=True):
                same.copy_(mine)
            return []
        after, before = (self._neighbour(step) for step in (1, -1))
        sends = [
            dist.P2POp(dist.isend, t.contiguous(), after, self.group) for t in leaving if t.numel()
        ]
        receives = [dist.P2POp(dist.irecv, t, before, self.group) for t in arriving if t.numel()]
        return dist.batch_isend_irecv(sends + receives) if sends or receives else []

    def _neighbour(self, step: int) -> int:
        return dist.get_global_rank(self.group, (self.rank + step) % self.world)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks, the same on all; its gradient is summed over the ranks too."""
        return _Sum.apply(value, self)

    def _sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


def bytes_sent(
    images: tuple[int, ...],
    texts: tuple[int, ...],
    rank: int,
    *,
    width: int,
    teacher_width: int = 0,
    feature_bytes: int = 4,
    pairs: tuple[int, int] = (0, 0),
    gather: str = "all",
) -> dict[str, int]:
    """Bytes that a rank sends to others in a step, forward and backward, by what they are.

    Of a log-sum-exp loss in the mean, of float32 statistics, without row weights, label
    smoothing or diagnostics. An all-gather of n bytes from each rank counts as (W - 1) n, an
    all-reduce of n bytes as 2 (W - 1) / W n, which is what a ring of them sends.

    Args:
        images: image rows of each rank.
        texts: text rows of each rank.
        rank: which of them.
        width: D.
        teacher_width: D', 0 without a teacher.
        feature_bytes: 4 for float32, 2 for 16 bits.
        pairs: positive pairs of its images with texts of other ranks, and of its texts with
            images of other ranks.
        gather: "all" or "ring".

    Example:
        >>> from mxm_kernels.parallel.distributed import bytes_sent
        >>> step = bytes_sent((4096,) * 8, (4096,) * 8, 0, width=512, feature_bytes=2)
        >>> {name: f"{sent >> 10} KiB" for name, sent in step.items() if sent >> 10}
        {'ids': '448 KiB', 'features': '28672 KiB', 'gradients': '28672 KiB', 'columns': '224 KiB'}
    """
    W, N, mine = len(texts), sum(texts), texts[rank]
    forward, backward = (3, 2) if teacher_width else (1, 1)  # numbers for a column
    both = max(m + n for m, n in zip(images, texts, strict=True))
    if gather == "ring":
        passed_on = N - texts[(rank + 1) % W]
        features = 2 * passed_on * (width + teacher_width) * feature_bytes
        gradients = N * width * 4 if W > 1 else 0
    else:
        features = (W - 1) * max(texts) * (width + teacher_width) * feature_bytes
        gradients = (N - mine) * width * feature_bytes
    return {
        "agreement": (W - 1) * _HEADER * 8,
        "ids": (W - 1) * both * 8,
        "features": features,
        "gradients": gradients,
        "columns": ((N - mine) * forward + (W - 1) * mine * backward) * 4,
        "pairs": sum(pairs) * 4,
        "loss": 2 * (2 * (W - 1) * 4 // W),
    }


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, ranks):
        ctx.ranks = ranks
        return ranks._sum(value)

    @staticmethod
    def backward(ctx, grad):
        return ctx.ranks._sum(grad), None


def bounds(counts: tuple[int, ...], rank: int) -> slice:
    """Where the rows of a rank are among those of all."""
    starts = [0, *accumulate(counts)]
    return slice(starts[rank], starts[rank + 1])


def _digest(facts: dict[str, Any]) -> int:
    text = repr(sorted((name, repr(value)) for name, value in facts.items()))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def world_group(rank: int, world_size: int) -> dist.ProcessGroup:
    """The default group, where this process is ``rank`` of ``world_size``.

    Raises:
        ValueError: it is not, or there is none yet.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"world_size={world_size} needs torch.distributed: call "
            "torch.distributed.init_process_group first"
        )
    real = dist.get_rank(), dist.get_world_size()
    if (rank, world_size) != real:
        raise ValueError(
            "rank and world_size must be those of torch.distributed, "
            f"{real[0]} and {real[1]}, got {rank} and {world_size}"
        )
    group = dist.group.WORLD
    assert group is not None
    return group


def generator_state(generator: torch.Generator) -> str:
    """A digest of a generator's state, to compare between ranks."""
    state = generator.get_state().numpy().tobytes()
    return hashlib.blake2b(state, digest_size=8).hexdigest()
