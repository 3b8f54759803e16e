"""Candidates compiled and checked in parallel processes, until the time is up."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

import torch

from mxm_kernels.backends.triton.settings import Cell, Launch
from mxm_kernels.tuning import worker

Job = tuple[Cell, Launch]
LATE = "the time was up"


@dataclass(frozen=True)
class Outcome:
    """The result of compiling and checking a candidate."""

    cell: Cell
    launch: Launch
    fault: str | None  # None: it compiled, and is right; LATE: it was not done in time


class _Process:
    """A worker, started when it is first asked and again after a crash."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, line: str, seconds: float) -> dict:
        """The answer of the worker process, which is ended if none comes within ``seconds``."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()  # a status of -9 may be the system's, short of memory

        def end_late() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(seconds, end_late)
        alarm.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            alarm.cancel()
        if reply:
            return json.loads(reply)
        self.end()
        status = process.returncode
        return {"fault": LATE if late.is_set() else f"its process ended with status {status}"}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def compile_all(
    jobs: Iterable[Job],
    device: torch.device,
    workers: int,
    seconds: float,
    done: Callable[[Outcome], None],
) -> None:
    """Compile and check the jobs in order; ``done`` gets each outcome, from one thread at a time.

    What has not begun after ``seconds`` is left out. An interrupt ends every process.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for one in jobs:
        waiting.put(one)
    ends, lock, stopped = monotonic() + seconds, threading.Lock(), threading.Event()

    def serve(process: _Process) -> None:
        while not stopped.is_set() and (left := ends - monotonic()) > 0:
            try:
                cell, launch = waiting.get_nowait()
            except queue.Empty:
                return
            reply = process.ask(worker.job(cell, device, launch), left)
            with lock:
                if not stopped.is_set():
                    done(Outcome(cell, launch, reply["fault"]))

    processes = [_Process() for _ in range(workers)]
    threads = [threading.Thread(target=serve, args=(p,), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()
        for process in processes:
            process.end()
