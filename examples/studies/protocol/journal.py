"""Outcomes of finished training runs, kept until the study is whole.

A run takes seconds and a study has hundreds: what a crash or a Ctrl-C ends in the middle goes on
from the runs that were done. A run is known by all that it depends on but the code.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mxm_kernels
from examples.files import changed, sealed, unsealed

if TYPE_CHECKING:
    from .runs import Run


class Journal:
    """A file with a line for each finished run.

    Args:
        path: of the file, which need not be there.
        common: all that the runs have in common, for their keys.

    """

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self.path = path
        self.common = common | {"torch": torch.__version__, "mxm_kernels": mxm_kernels.__version__}
        self.done: dict[str, tuple[dict[str, float], float]] = {}
        if not path.exists():
            return
        whole, _, cut = path.read_text(errors="replace").rpartition("\n")
        for line in whole.split("\n") if whole else ():
            run = unsealed(line)
            if run is None:
                raise changed(path)
            self.done[run["key"]] = run["metrics"], run["seconds"]
        if cut:  # a line whose writing was interrupted
            path.write_text(whole + "\n" if whole else "")
        print(f"{path}: going on from {len(self.done)} finished runs; remove it to start anew")

    def key(self, run: "Run") -> str:
        """A digest of what a run depends on."""
        parts = {**self.common, **asdict(run)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def find(self, run: "Run") -> tuple[dict[str, float], float] | None:
        """Metrics and seconds of a finished run."""
        return self.done.get(self.key(run))

    def add(self, run: "Run", metrics: dict[str, float], seconds: float) -> None:
        """Keep what a run came to."""
        line = {"key": self.key(run), "metrics": metrics, "seconds": seconds}
        with self.path.open("a") as file:
            file.write(sealed(line) + "\n")

    def finish(self) -> None:
        """Remove the file: its runs are in a report now."""
        self.path.unlink(missing_ok=True)
