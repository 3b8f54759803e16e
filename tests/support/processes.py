"""Run a function in other processes: quickly, and with a time limit.

A fork server that has imported torch, and has not run anything yet, forks each process in
milliseconds. (A fork of the test process itself would have inherited dead threads.)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ["torch", "torch.distributed", "torch.nn.parallel", "mxm_kernels"]


def context(preload: tuple[str, ...] = ()):
    """The fork server's multiprocessing context; ``preload`` counts until it first runs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([*PRELOADED, *preload])
    return server


def run_ranks(
    world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60
) -> list[Any]:
    """``function(rank, world, *arguments)`` in each process of a gloo group.

    Returns the results in rank order; an exception there is the result here. A process that
    dies without a result gives its exit code, as a ProcessExitError.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        ranks = [_Rank(r, world, store, timeout, function, arguments) for r in range(world)]
        deadline = monotonic() + timeout + 10
        return [rank.result(deadline) for rank in ranks]


def results(
    world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60
) -> list[Any]:
    """The results of :func:`run_ranks`; the first exception among them is raised."""
    values = run_ranks(world, function, *arguments, timeout=timeout)
    for value in values:
        if isinstance(value, BaseException):
            raise value
    return values


class ProcessExitError(RuntimeError):
    """A process ended without a result, or did not end in time."""


class _Rank:
    def __init__(self, rank, world, store, timeout, function, arguments) -> None:
        server = context()
        self.receiver, sender = server.Pipe(duplex=False)
        self.process = server.Process(
            target=_work,
            args=(sender, rank, world, store, timeout, function, arguments),
            daemon=True,
        )
        self.process.start()
        sender.close()

    def result(self, deadline: float) -> Any:
        value: Any = None
        try:
            if self.receiver.poll(max(0.0, deadline - monotonic())):
                value = torch.load(io.BytesIO(self.receiver.recv_bytes()), weights_only=False)
            else:
                value = ProcessExitError("no result in time")
        except EOFError:
            self.process.join(5)
            value = ProcessExitError(f"exit code {self.process.exitcode}")
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return value


def _work(sender, rank, world, store, timeout, function, arguments) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    for kind in (FutureWarning, DeprecationWarning):  # of torch, whoever it says is to blame
        warnings.simplefilter("error", kind)
    dist.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    try:
        value = function(rank, world, *arguments)
    except Exception as error:
        error.add_note(f"rank {rank}:\n{traceback.format_exc()}") if hasattr(
            error, "add_note"
        ) else None
        value = error
    buffer = io.BytesIO()
    torch.save(value, buffer)
    sender.send_bytes(buffer.getvalue())
    sender.close()
    with suppress(RuntimeError):  # another rank may be gone
        dist.destroy_process_group()


def as_torchrun(rank: int, world: int) -> None:
    """Put a rank into the environment of a process that torchrun starts, for libraries to read.

    What these libraries call of torch that it deprecates is not ours.
    """
    warnings.simplefilter("default")
    warnings.filterwarnings("error", module="mxm_kernels")
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",
        TORCHELASTIC_RUN_ID="test",
    )
