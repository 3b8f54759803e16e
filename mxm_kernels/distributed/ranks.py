"""The ranks of a process group: what they agree on, and what they send each other.

The one place that uses torch.distributed. Every function here is called by every rank of the
group, in the same order; gloo on CPUs and NCCL on GPUs both have what is used: all_gather,
all_to_all, all_reduce, send and receive, and all_gather_object where ranks disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

HEADER = 5  # numbers of the first exchange


@dataclass(frozen=True)
class Agreement:
    """What the first exchange of a step tells every rank."""

    images: tuple[int, ...]  # image rows of each rank
    texts: tuple[int, ...]  # text rows of each rank
    seed: int  # of rank 0


@dataclass(eq=False)
class Ranks:
    """A process group, this process's place in it, and what it sends to the others.

    ``arguments`` are those of the call of a loss which all ranks must have alike.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: this process is not in it, which then has what ``new_group`` returns there.
    """

    group: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    agreed: bool = field(default=False, init=False)  # whether the first exchange is over

    def __post_init__(self) -> None:
        if dist.is_available() and _is_of_others(self.group):
            raise ValueError(
                "process_group: this process is not in the group: only its members call the loss "
                "with it; give a group that this process is in, or None for a batch of its own"
            )
        if not dist.is_available() or not isinstance(self.group, dist.ProcessGroup):
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup or None, got "
                f"{type(self.group).__name__}"
            )
        self.rank = dist.get_rank(self.group)
        self.world = dist.get_world_size(self.group)

    def agree(
        self,
        facts: dict[str, Any],
        rows: tuple[int, int] = (0, 0),
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Agreement:
        """Compare what has to be the same on every rank, and learn the sizes of the shards.

        Args:
            facts: name and value of what has to be the same.
            rows: image and text rows of this rank.
            seed: of this rank, below 2**63.
            device: of the features.

        Raises:
            ValueError: the ranks disagree; the message names on what, with the values.
            RuntimeError: another rank has an error, see :meth:`tell`; the message repeats it.
        """
        self.agreed = True
        headers = self._headers([0, _digest(facts), *rows, seed], device)
        if any(h[0] for h in headers) or any(h[1] != headers[0][1] for h in headers):
            self._disagree(self._every(facts))
        return Agreement(tuple(h[2] for h in headers), tuple(h[3] for h in headers), headers[0][4])

    def tell(self, error: Exception) -> None:
        """Called instead of :meth:`agree` on a rank with an error: the other ranks learn of it."""
        self._headers([1, 0, 0, 0, 0], None)
        self._every(f"{type(error).__name__}: {error}")

    def _headers(self, mine: list[int], device: torch.device | None) -> list[list[int]]:
        """The numbers of every rank, in the first exchange."""
        assert len(mine) == HEADER
        sent = torch.tensor(mine, dtype=torch.int64, device=self._device(device))
        every = sent.new_empty(self.world * HEADER)
        self._all_gather(every, sent)
        return every.view(self.world, HEADER).tolist()

    def _every(self, mine: Any) -> list[Any]:
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, mine, group=self.group)
        return told

    def _disagree(self, told: list[dict[str, Any] | str]) -> NoReturn:
        """Raise what is wrong: the facts of every rank, or what its error says."""
        facts = []
        for rank, other in enumerate(told):
            if isinstance(other, str):
                raise RuntimeError(f"process_group: rank {rank} has an error: {other}")
            facts.append(other)
        for name in sorted({name for other in facts for name in other}):
            values = [other.get(name) for other in facts]
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"process_group: the ranks must agree on {name}, got {values[0]} on "
                        f"rank 0 and {value} on rank {rank}"
                    )
        raise AssertionError(
            "process_group: the ranks agree on every argument, but the digests of their arguments "
            "differ: this is a defect of mxm_kernels, please report it"
        )

    def _device(self, features: torch.device | None) -> torch.device:
        """Device of the first exchange: the group's, since a rank with an error has no features."""
        if "nccl" not in str(dist.get_backend_config(self.group)):
            return torch.device("cpu")
        if features is not None and features.type == "cuda":
            return features
        return torch.device("cuda")

    def gather(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Rows of every rank, rank after rank: (counts[rank], ...) -> (sum(counts), ...).

        Shards are padded to the longest, so that all have one size on the wire.
        """
        dtype, rows = rows.dtype, _as_sent(rows)
        most = max(counts)
        padded = rows.contiguous()
        if len(rows) < most:
            padded = rows.new_zeros((most, *rows.shape[1:]))
            padded[: len(rows)] = rows
        every = rows.new_empty((self.world * most, *rows.shape[1:]))
        if most:
            self._all_gather(every, padded)
        if any(count != most for count in counts):
            shards = zip(every.split(most), counts, strict=True)
            every = torch.cat([shard[:count] for shard, count in shards])
        return every.view(dtype)

    def _all_gather(self, every: Tensor, mine: Tensor) -> None:
        """Fill ``every`` with what the ranks have, rank after rank."""
        # torch renamed it, and warns of the older name where it has the new one.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(every, mine, group=self.group)

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
        leaving, arriving = (tuple(map(_as_sent, tensors)) for tensors in (leaving, arriving))
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

    def greatest(self, value: Tensor) -> Tensor:
        """Maximum over the ranks, the same on all; without a gradient. NaN counts as infinite."""
        top = value.detach().nan_to_num(torch.inf, posinf=torch.inf)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self.group)
        return top

    def _sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


class SharedErrors:
    """A context in which an error of one rank becomes an error of every rank.

    It is for the checks before :meth:`Ranks.agree`, in which the other ranks learn of the error.
    Without an error it sends nothing. After that exchange it sends nothing either: an error of one
    rank alone then leaves the others waiting until the group's timeout. So a check belongs before
    the exchange, or what it checks belongs among the facts.

    Args:
        group: the argument ``process_group`` of a call: None, a process group, or a mistake.
        arguments: see :class:`Ranks`.

    """

    def __init__(self, group: Any, arguments: dict[str, Any] | None = None) -> None:
        self.group, self.arguments = group, arguments or {}
        self._ranks: Ranks | None = None

    def __enter__(self) -> Ranks | None:
        if self.group is not None:
            self._ranks = Ranks(self.group, self.arguments)
        return self._ranks

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._ranks is not None and isinstance(error, Exception) and not self._ranks.agreed:
            self._ranks.tell(error)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, ranks):
        ctx.ranks = ranks
        return ranks._sum(value)

    @staticmethod
    def backward(ctx, grad):
        return ctx.ranks._sum(grad), None


def _is_of_others(group: Any) -> bool:
    """Whether it is a group without this process, or what ``dist.new_group`` gives in its place."""
    if isinstance(group, dist.ProcessGroup):
        return dist.get_rank(group) < 0
    outside = dist.GroupMember.NON_GROUP_MEMBER
    return type(group) is type(outside) and group == outside


def _as_sent(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that every collective takes, without a copy: float8 as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def bounds(counts: tuple[int, ...], rank: int) -> slice:
    """The place of a rank's rows among the rows of all ranks."""
    starts = [0, *accumulate(counts)]
    return slice(starts[rank], starts[rank + 1])


def _digest(facts: dict[str, Any]) -> int:
    text = repr(sorted((name, repr(value)) for name, value in facts.items()))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def default_group() -> dist.ProcessGroup | None:
    """All processes, where torch.distributed has been started."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    return dist.group.WORLD


def world_group(rank: int, world_size: int) -> dist.ProcessGroup:
    """The default group, where this process is ``rank`` of ``world_size``.

    Raises:
        ValueError: it is not, or there is none yet.
    """
    group = default_group()
    if group is None:
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
    return group


def generator_state(generator: torch.Generator) -> str:
    """A digest of a generator's state, to compare between ranks."""
    state = generator.get_state().numpy().tobytes()
    return hashlib.blake2b(state, digest_size=8).hexdigest()


def groups_of(modules: Iterable[nn.Module]) -> list[dist.ProcessGroup]:
    """The groups whose ranks must call ``modules`` equally often: each call sends something.

    FSDP of both versions and tensor parallel modules gather or reduce in every forward pass, and
    SyncBatchNorm in training mode. DDP does so in a backward pass that synchronises.
    """
    if default_group() is None:
        return []
    inner = dict.fromkeys(part for module in modules for part in module.modules())
    groups = dict.fromkeys(group for part in inner for group in _groups_of_one(part))
    return [group for group in groups if dist.get_world_size(group) > 1]


def _groups_of_one(module: nn.Module) -> Iterator[Any]:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if isinstance(module, FullyShardedDataParallel):
        yield module.process_group
    if isinstance(module, nn.SyncBatchNorm) and module.training:
        yield module.process_group or dist.group.WORLD
    if isinstance(module, FSDPModule) and not any(
        isinstance(p, DTensor) for p in module.parameters()
    ):
        module.reshard()  # whole since a forward pass without a graph; its mesh is that of a shard
    for parameter in module.parameters(recurse=False):
        if isinstance(parameter, DTensor):
            yield from parameter.device_mesh.get_all_groups()


def most_over(groups: Iterable[Any], own: Callable[[], tuple[int, dict[str, Any]]]) -> int:
    """The largest count of all ranks of some groups, the dimensions of a mesh for instance.

    ``own`` gives this rank's count, and the facts that all must have alike.

    Raises:
        Exception: that of ``own``, after the others were told.
        ValueError: the ranks disagree on a fact.
        RuntimeError: another rank has an error; the message repeats it.
    """
    wrong: Exception | None = None
    count, facts = 0, dict[str, Any]()
    try:
        count, facts = own()
    except Exception as error:
        wrong = error
    for group in groups:
        ranks = Ranks(group)
        if wrong is not None:
            ranks.tell(wrong)
            continue
        try:
            count = max(ranks.agree(facts, (count, 0)).images)
        except (ValueError, RuntimeError) as error:
            wrong = error
    if wrong is not None:
        raise wrong
    return count
