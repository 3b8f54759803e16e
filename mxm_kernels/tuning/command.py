"""``python -m mxm_kernels tune``: the command line.

Exit status: 0; 1 where nothing could be measured or kept, with the reason; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mxm_kernels.backends import load
from mxm_kernels.backends.triton import INSTALL
from mxm_kernels.tuning.progress import Progress

SECONDS, D, ROWS = 60.0, 768, 16_384
DTYPES = ("bfloat16", "float16", "float32")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="dtype of the features")
    parser.add_argument("--dim", type=_count, default=D, help=f"D, width of the features ({D})")
    parser.add_argument(
        "--rows", type=_count, default=ROWS, help=f"images of a batch, and as many texts ({ROWS:,})"
    )
    parser.add_argument(
        "--teacher",
        choices=("both", "with", "without"),
        default="both",
        help="measure batches with a teacher, without one, or both (both)",
    )
    parser.add_argument(
        "--loss",
        choices=("softmax", "sigmoid"),
        default="softmax",
        help="measure the kernels of the softmax losses, or of SigLIP (softmax)",
    )
    parser.add_argument(
        "--diagnostics", action="store_true", help="measure the statistics with diagnostics"
    )
    parser.add_argument("--device", type=_device, help="the GPU to measure (the current one)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=SECONDS,
        help=f"about how long to measure ({SECONDS:.0f})",
    )
    parser.add_argument(
        "--reset", action="store_true", help="remove the measured settings, and end"
    )
    parser.set_defaults(refuse=parser.error)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"must be a device such as cuda:0, got {text}") from error


def run(options: argparse.Namespace) -> int:
    """The exit status."""
    if options.loss == "sigmoid" and options.diagnostics:
        options.refuse("--diagnostics are of the softmax losses, got --loss sigmoid")
    if options.loss == "sigmoid" and options.teacher == "with":
        options.refuse("--teacher: SigLIP has none, got with")
    try:
        from mxm_kernels.backends.triton import tuned
    except ImportError as error:
        return _fail(f"the package triton cannot be imported ({error}): {INSTALL}")
    if options.reset:
        return _reset(tuned.path())
    device = options.device or _default_device()
    dtype = getattr(torch, options.dtype)
    reason = load("triton").unavailable(device, dtype)
    if reason is not None:
        return _fail(f"no GPU to measure: {reason}")
    try:
        tuned.check_writable()
    except tuned.TunedFileError as error:
        return _fail(f"{error}; {tuned.FORGET}")
    except OSError as error:
        return _unwritten(error)
    return _tune(options, device, dtype)


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _fail(reason: str) -> int:
    print(f"python -m mxm_kernels tune: {reason}", file=sys.stderr)
    return 1


def _unwritten(error: Exception) -> int:
    from mxm_kernels.backends.triton import tuned

    return _fail(f"settings cannot be written: {error}; {tuned.FOLDER} names another folder")


def _reset(file: Path) -> int:
    try:
        file.unlink()
    except FileNotFoundError:
        print(f"nothing was measured: there is no {file}")
    except OSError as error:
        return _fail(f"{file} cannot be removed: {error}")
    else:
        print(f"removed {file}: the table's launch settings are used")
    return 0


def cells(options: argparse.Namespace, dtype: torch.dtype) -> list:
    """The cells of the table that the options ask for."""
    from mxm_kernels.backends.triton.settings import Cell, Phase

    size = {"D": options.dim, "rows": options.rows}
    wide = dtype == torch.float32  # whose products are the vendor's, read from memory
    if options.loss == "sigmoid":
        phases: tuple[Phase, ...] = ("sigmoid_statistics", "sigmoid_gradient")
        if wide:
            phases = ("stored_sigmoid_statistics", "stored_sigmoid_gradient")
        return [Cell(phase, dtype, teacher=False, **size) for phase in phases]
    teachers = {"both": (True, False), "with": (True,), "without": (False,)}[options.teacher]
    found = []
    for teacher in teachers:
        forward: Phase = "stored_statistics" if wide else "statistics"
        found.append(Cell(forward, dtype, teacher, **size, diagnostics=options.diagnostics))
        if not options.diagnostics:  # which change nothing in backward
            found.append(Cell("stored_gradient", dtype, teacher, **size))
            if not wide:
                found.append(Cell("gradient", dtype, teacher, **size))
    return found


def _tune(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    from mxm_kernels.backends.triton import tuned
    from mxm_kernels.tuning.tune import tune

    progress = Progress(options.seconds)
    try:
        found = tune(cells(options, dtype), device, options.seconds, progress)
    except KeyboardInterrupt:
        progress.end()
        print("python -m mxm_kernels tune: stopped; nothing was written", file=sys.stderr)
        return 130
    progress.end()
    for one in found:
        print(_line(one))
    entries = [entry for one in found if (entry := one.entry(device)) is not None]
    if not entries:
        return _fail("no candidate was compiled, checked and timed; give it more --seconds")
    try:
        file = tuned.write(entries)
    except (OSError, tuned.TunedFileError) as error:
        return _unwritten(error)
    print(f"\nwritten to {file}: processes that start from now on use them")
    return 0


def _line(found) -> str:
    """A cell's result."""
    from mxm_kernels.backends.triton import tuned

    lines = [tuned.describe(tuned.key(found.cell))]
    tried = f"{len(found.races[0]) if found.races else 0} of {found.asked} candidates timed"
    if found.best is not None:
        best, table = found.milliseconds
        against = "the table's launch was wrong" if table is None else f"table {table:.3f} ms"
        b = found.best
        lines.append(
            f"  {best:.3f} ms ({against}): tile {b.rows} x {b.cols}, depth {b.depth}, warps "
            f"{b.warps}, stages {b.stages}, groups of {b.group}; {tried}"
        )
    else:
        lines.append(f"  {tried}")
    lines += [f"  left out {one}: {fault}" for one, fault in found.faults]
    return "\n".join(lines)
