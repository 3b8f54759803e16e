"""The phases one after the other: ``bench/gpu.sh OUT [first|second]`` is what calls this.

Exit status: 0; 1 where something of this repository failed or was wrong. A phase that its bound
cuts off is not red: its file has what it had.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from time import monotonic

import torch

from bench.gpu import summary
from bench.gpu.phases import Phase, Run, WrongError, table
from bench.gpu.results import Results

LEAST = 15.0  # with fewer seconds left no phase of the second part starts
TOTAL = 570.0  # of both parts: a command there has ten minutes
FAILED, WRONG = 70, 71  # exit status of a phase's process


def run_phase(phase: Phase, out: Path, device: torch.device, smoke: bool, seconds: float) -> str:
    """Run it in a process and a process group of its own; how it ended, in words."""
    ends = monotonic() + seconds
    run = Run(out, device, smoke, Results(out / phase.file), ends)
    process = multiprocessing.get_context("fork").Process(target=_inside, args=(phase, run))
    process.start()
    process.join(max(0.0, ends - monotonic()))
    late = process.is_alive()
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
    process.join()
    if late:
        return f"cut off after {seconds:.0f} s"
    if process.exitcode == 0:
        return "done"
    wrong = {FAILED: "failed, see all.log", WRONG: "found something wrong"}
    return wrong.get(process.exitcode or 0, f"ended with status {process.exitcode}")


def _inside(phase: Phase, run: Run) -> None:
    os.setsid()
    if _touched(run.device):  # then the GPU is out of reach of a forked process: a fresh one
        options = [f"--device={run.device}", *(["--smoke"] if run.smoke else [])]
        options += [f"--phase={phase.name}", f"--seconds={run.ends - monotonic()}"]
        os.execv(sys.executable, [sys.executable, "-m", "bench.gpu", str(run.out), *options])
    _log_and_run(phase, run)


def _touched(device: torch.device) -> bool:
    """Whether what was imported has touched CUDA before the fork."""
    return device.type == "cuda" and torch.cuda._is_in_bad_fork()


def _log_and_run(phase: Phase, run: Run) -> None:
    log = os.open(run.out / "all.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
    print(f"\n=== {phase.name}", flush=True)
    status = 0
    try:
        phase.run(run)
    except WrongError as wrong:
        print(f"wrong: {wrong}", flush=True)
        status = WRONG
    except BaseException:
        traceback.print_exc()
        status = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing of the parent's is to run at this process's end


def main() -> int:
    """Command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=description)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("part", nargs="?", choices=("first", "second"), help="both by default")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--smoke", action="store_true", help="a rehearsal on small batches")
    parser.add_argument("--phase", help="this one alone, in this process")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="its bound")
    options = parser.parse_args()
    out, began = options.out.resolve(), monotonic()
    first, second = table()
    for phase in first + second:
        if phase.name == options.phase:
            results = Results(out / phase.file)
            ends = began + options.seconds
            _log_and_run(phase, Run(out, options.device, options.smoke, results, ends))
    phases = {"first": first, "second": second, None: first + second}[options.part]
    ended: dict[str, str] = {}
    for phase in phases:
        bound = phase.rehearsed if options.smoke else phase.seconds
        left = TOTAL - (monotonic() - began)
        if phase in second and not options.smoke and left < LEAST:
            ended[phase.name] = "not run: no time was left"
            continue
        started = monotonic()
        how = run_phase(phase, out, options.device, options.smoke, min(bound, left))
        ended[phase.name] = f"{how} ({monotonic() - started:.0f} s)"
        Results(out / phase.file).keep({f"{phase.name} ended": ended[phase.name]})
        print(f"{phase.name}: {ended[phase.name]}", flush=True)
    print(summary.text(out))
    fine = ("done", "cut off", "not run")
    red = [name for name, how in ended.items() if not how.startswith(fine)]
    print(f"RED: {', '.join(red)}" if red else "nothing failed and nothing was wrong")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
