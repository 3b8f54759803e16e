"""The file of launch settings that ``python -m mxm_kernels tune`` measured on the user's GPUs.

One JSON file in a folder beside Triton's cache: ``launch.json`` in ``~/.triton/mxm_kernels``, or
in the folder that the environment variable ``MXM_KERNELS_TUNED`` names. An entry counts on the GPU
that it was measured on, under the same Triton, for the same source of the kernels, for a bucket of
D and a bucket of rows, and only if its launch is one of this version's candidates.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs

from mxm_kernels.backends.triton.candidates import is_candidate
from mxm_kernels.backends.triton.settings import KINDS, Cell, Launch, Phase, Target

FOLDER = "MXM_KERNELS_TUNED"  # the environment variable
FORMAT = 1
# A bucket is named by its upper bound of D, or its lower bound of rows.
D_BOUNDS = (256, 512, 1024, 2048)
ROW_BOUNDS = (0, 1024, 4096, 16_384)


class Key(NamedTuple):
    """What an entry is found by, beside GPU, Triton and source."""

    phase: Phase
    dtype: str
    teacher: bool
    diagnostics: bool
    D: int | None  # at most; None: more than the largest bound
    rows: int  # at least, and below the next bound


def key(cell: Cell) -> Key:
    """The bucket of a cell."""
    D = next((bound for bound in D_BOUNDS if bound >= cell.D), None)
    rows = max(bound for bound in ROW_BOUNDS if bound <= cell.rows)
    dtype = str(cell.dtype).removeprefix("torch.")
    return Key(cell.phase, dtype, cell.teacher, cell.diagnostics, D, rows)


def describe(of: Key) -> str:
    """A bucket in words."""
    upper = dict(pairwise(ROW_BOUNDS)).get(of.rows)
    rows = f"{of.rows:,} rows and more" if upper is None else f"{of.rows:,} to {upper - 1:,} rows"
    D = f"D over {D_BOUNDS[-1]:,}" if of.D is None else f"D up to {of.D:,}"
    parts = [of.phase.replace("_", " "), of.dtype, "teacher" if of.teacher else "no teacher"]
    parts += ["diagnostics"] if of.diagnostics else []
    return ", ".join([*parts, D, rows])


@dataclass(frozen=True)
class Entry:
    """One measured setting, and where it holds."""

    gpu: str
    triton: str
    source: str  # ``source_hash`` of the kernels
    key: Key
    launch: Launch
    measured: dict[str, Any] = field(default_factory=dict)  # for a reader: times, date

    @classmethod
    def here(cls, gpu: str, cell: Cell, launch: Launch, measured: dict[str, Any]) -> Entry:
        """What was measured with this Triton and these kernels."""
        return cls(gpu, triton.__version__, source_hash(), key(cell), launch, measured)

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        return {**asdict(self), "key": self.key._asdict()}

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Entry:
        """From the file; KeyError, TypeError or ValueError where it is not an entry."""
        launch = Launch(**{name: int(value) for name, value in raw["launch"].items()})
        found = Key(**raw["key"])
        if found.phase not in KINDS:
            raise ValueError(f"no phase is called {found.phase!r}")
        return cls(raw["gpu"], raw["triton"], raw["source"], found, launch, raw.get("measured", {}))


@dataclass(frozen=True)
class Loaded:
    """What a file says to one GPU."""

    path: Path
    digest: str | None = None  # of the file; None: there is none
    launches: dict[Key, Launch] = field(default_factory=dict)
    elsewhere: int = 0  # entries of other GPUs, other versions of Triton or other kernels
    ignored: tuple[str, ...] = ()  # what is wrong with the file, or with some of its entries


class TunedFileError(ValueError):
    """The file is not one of measured settings."""


def path() -> Path:
    """Where the file is."""
    folder = os.environ.get(FOLDER)
    return (
        Path(folder) if folder else Path(knobs.cache.dir).parent / "mxm_kernels"
    ) / "launch.json"


@cache
def source_hash() -> str:
    """A digest of the files that hold kernels: other kernels want other settings."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        source = file.read_bytes()
        if b"@triton.jit" in source:
            digest.update(file.name.encode() + source)
    return digest.hexdigest()[:12]


def read(file: Path) -> tuple[list[Entry], str | None]:
    """Every entry of the file, and its digest; none and None where there is no file.

    Raises:
        TunedFileError: the file is there and cannot be read as one of measured settings.
    """
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return [], None
    except OSError as error:
        raise TunedFileError(f"{file} cannot be read: {error}") from error
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}, expected {FORMAT}")
        entries = [Entry.read(entry) for entry in raw["entries"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TunedFileError(f"{file} is not a file of measured settings ({reason})") from error
    return entries, hashlib.sha256(text).hexdigest()[:12]


FORGET = "`python -m mxm_kernels tune --reset` forgets it"


def load(gpu: str, on: Target, shared: int) -> Loaded:
    """The entries for a GPU; what is not one of them is ignored, with a reason."""
    file = path()
    try:
        entries, digest = read(file)
    except TunedFileError as error:
        return Loaded(file, ignored=(f"{error}; the table's launch settings are used",))
    here = gpu, triton.__version__, source_hash()
    mine = [e for e in entries if (e.gpu, e.triton, e.source) == here]
    known = [e for e in mine if _known(e, on, shared)]
    ignored: tuple[str, ...] = ()
    if len(known) < len(mine):
        first = next(e for e in mine if e not in known)
        ignored = (
            f"{file}: {len(mine) - len(known)} of {len(mine)} entries are ignored, because their "
            "launch is none of this version's candidates; the first is "
            f"{describe(first.key)}: {first.launch}",
        )
    launches = {entry.key: entry.launch for entry in known}
    return Loaded(file, digest, launches, len(entries) - len(mine), ignored)


def _known(entry: Entry, on: Target, shared: int) -> bool:
    k = entry.key
    dtype = getattr(torch, k.dtype, None)
    if not isinstance(dtype, torch.dtype):
        return False
    D = D_BOUNDS[-1] + 1 if k.D is None else k.D
    cell = Cell(k.phase, dtype, k.teacher, D, k.rows, k.diagnostics)
    return key(cell) == k and is_candidate(entry.launch, cell, on, shared)


def write(entries: list[Entry]) -> Path:
    """Add entries to the file, by rename: a reader finds the old file or the new one.

    An entry replaces an older one of the same GPU, Triton and bucket, even one of other kernels.

    Raises:
        TunedFileError: a file is there that is not one of measured settings; it stays as it is.
        OSError: the folder cannot be written to.
    """
    file = path()
    kept, _ = read(file)
    new = {(entry.gpu, entry.triton, entry.key): entry for entry in kept}
    new |= {(entry.gpu, entry.triton, entry.key): entry for entry in entries}
    text = json.dumps({"format": FORMAT, "entries": [e.as_dict() for e in new.values()]}, indent=1)
    temporary = _temporary(file)
    try:
        temporary.write_text(text + "\n")
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return file


def check_writable() -> None:
    """Look whether ``write`` can succeed, before a minute is spent on what it is to write.

    Raises:
        TunedFileError: a file is there that is not one of measured settings.
        OSError: the folder cannot be written to.
    """
    read(path())
    temporary = _temporary(path())
    temporary.touch()
    temporary.unlink()


def _temporary(file: Path) -> Path:
    """A file of this process in the same folder, which is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_name(f"{file.name}.{os.getpid()}")
