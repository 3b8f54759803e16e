"""Whole runs of the fine-tuning example in a tenth of a second, each in a process of its own.

Everything is the example's but the encoders and the data, which are a few numbers, and the
figure. A server process imports the example once and forks a process for every run.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Server:
    """Starts runs, kills them if told to, and says how they ended."""

    def __init__(self, connection, log: Path) -> None:
        self._connection, self._log = connection, log

    def log(self) -> str:
        """What the last run printed."""
        return self._log.read_text()

    def run(
        self,
        options: dict[str, Any],
        kill: float | Path | None = None,
        file_size_limit: int | None = None,
    ) -> int:
        """Run the configuration ``options``; its exit code, minus the signal that ended it.

        Args:
            options: by name, without the dashes.
            kill: SIGKILL it after so many seconds, or as soon as this path exists.
            file_size_limit: bytes at which writing to a file fails.
        """
        self._connection.send((options, kill, file_size_limit))
        return self._connection.recv()


@contextmanager
def server(log: Path) -> Iterator[Server]:
    """A server process, ended with the block; its runs print to ``log``."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, log))
    process.start()
    theirs.close()
    try:
        ours.recv()  # it has imported everything
        yield Server(ours, log)
    finally:
        ours.close()
        process.join(30)
        if process.is_alive():
            process.kill()


def _serve(connection, log: Path) -> None:
    import torch

    # Imported here, once, for every run.
    import examples.finetune.figure
    import examples.finetune.train  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # collecting garbage would touch, and so copy, all that was imported
    connection.send("ready")
    while True:
        try:
            options, kill, limit = connection.recv()
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            os._exit(_run(options, limit, log))
        connection.send(_end(child, kill))


def _end(child: int, kill: float | Path | None) -> int:
    """Kill the child at its time, if it lives that long; its exit code."""
    start = time.monotonic()
    while kill is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill.exists() if isinstance(kill, Path) else time.monotonic() - start >= kill:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.0005)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(options: dict[str, Any], limit: int | None, log: Path) -> int:
    from examples.finetune import __main__ as command
    from examples.finetune import figure

    printed = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    use_tiny_parts()
    figure.save_figure = lambda result, config: "none: there are no images to show"
    try:
        code = command.main([part for k, v in options.items() for part in (f"--{k}", str(v))])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def use_tiny_parts() -> None:
    """Give the example the encoders and the data below."""
    from examples.finetune import train

    train.build_encoders = tiny_encoders
    train.make_material = tiny_material


def tiny_encoders(config):
    """Linear towers with dropout over numbers."""
    from torch import nn

    from examples.encoders.dual import Encoders, TwoTowers
    from examples.encoders.packaged import MeanPool, TextProjection, TextStages

    image = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Linear(16, 8))
    text = TextStages([MeanPool(), TextProjection(5, 8)])
    model = TwoTowers(image, text, config.temperature, fresh={"image_tower.", "text_tower."})
    return Encoders(model, None, None)  # type: ignore[arg-type]


def tiny_material(config, encoders, accelerator):
    """Twelve instances with two to four images and one to three captions."""
    import torch

    from examples.data.multifold import Observations, flatten
    from examples.finetune.inputs import Material

    generator = torch.Generator().manual_seed(0)

    def rows(count, *shape):
        return list(torch.randn(count, *shape, generator=generator))

    images, image_ids = flatten([rows(2 + i % 3, 6) for i in range(12)])
    texts, text_ids = flatten([rows(1 + i % 3, 4, 5) for i in range(12)])
    data = Observations(images, texts, image_ids, text_ids)
    return Material([], data, data)
