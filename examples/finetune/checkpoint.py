"""Checkpoints that are whole or do not count, and that are read as they were written.

Accelerate writes model, teacher, optimiser and schedule into `checkpoints/checkpoint_STEP`. The
file `run.json`, with what the run has done and the SHA-256 of every other file, is written last,
after the others are on the disk: a folder without it is unfinished, and the next start removes it.
A file that is missing or has changed since is found before anything is loaded.

No file of a checkpoint can run code when it is loaded: weights are safetensors, the progress is
JSON, and Accelerate reads the rest with `weights_only`. (What is registered with Accelerate's
`register_for_checkpointing` it would unpickle.)
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..errors import CheckpointError, OptionError
from ..files import DIGEST, WRITE_ERRORS, digest_of, flush, unsealed, write_json
from .config import Config
from .retrieval import Metrics

RUN_FILE = "run.json"
KEPT = 2
READ_ERRORS = (*WRITE_ERRORS, ValueError, KeyError, TypeError, UnpicklingError)


@dataclass
class Progress:
    """What a run has done, as it is kept in a checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    before: Metrics | None = None
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run of so many steps; `progress` is kept beside Accelerate's state."""

    def __init__(
        self, accelerator: Accelerator, config: Config, progress: Progress, steps: int
    ) -> None:
        self.accelerator, self.config, self.progress = accelerator, config, progress
        self.steps = steps
        self.folder = config.output_path / "checkpoints"

    def numbered(self) -> list[Path]:
        """Folders of all checkpoints, the unfinished ones too, oldest first."""
        found = [p for p in self.folder.glob("checkpoint_*") if re.fullmatch(r"\d+", p.name[11:])]
        return sorted(found, key=lambda folder: int(folder.name[11:]))

    def complete(self) -> list[Path]:
        """Folders of the complete checkpoints, oldest first."""
        return [folder for folder in self.numbered() if (folder / RUN_FILE).is_file()]

    def save(self) -> None:
        """Write a checkpoint; where this fails, remove what was written of it and say why."""
        folder = self.folder / f"checkpoint_{self.progress.step}"
        try:
            self.together(lambda: self.keep(self.complete()[1 - KEPT :]), main_only=True)
            self.together(lambda: self.accelerator.save_state(str(folder)))
            self.together(lambda: self.finish(folder), main_only=True)
        except CheckpointError as error:
            free = shutil.disk_usage(self.config.output_path).free
            if self.accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            last = next((f for f in reversed(self.complete()) if f != folder), "none")
            raise CheckpointError(
                f"cannot write checkpoint {folder}: {error} ({free:,} bytes were free; the last "
                f"complete checkpoint is {last})"
            ) from error

    def finish(self, folder: Path) -> None:
        """Put everything on the disk, and then what says that it is there."""
        files = sorted(path for path in folder.iterdir())
        for path in (*files, self.folder):
            flush(path)
        content = {
            "options": self.config.numeric_options(),
            "processes": self.accelerator.num_processes,
            "steps": self.steps,
            "progress": asdict(self.progress),
            "files": {path.name: digest_of(path) for path in files},
        }
        write_json(folder / RUN_FILE, content)

    def keep(self, kept: list[Path]) -> None:
        """Remove all other checkpoints; one that is half removed has no `run.json` any more."""
        for folder in self.numbered():
            if folder not in kept:
                (folder / RUN_FILE).unlink(missing_ok=True)
                shutil.rmtree(folder)

    def together(self, work: Callable[[], object], main_only: bool = False) -> None:
        """Do a part of the work on every process, and fail on all of them if one fails."""
        problem = ""
        try:
            if self.accelerator.is_main_process or not main_only:
                work()
        except (*WRITE_ERRORS, CheckpointError) as error:
            problem = str(error)
        problems = [text for text in gather_object([problem]) if text]
        if problems:
            raise CheckpointError(problems[0])

    def restore(self) -> None:
        """Load the newest checkpoint, if there is one and the user wants to go on from it."""
        kept = self.complete() if self.config.resume else []
        self.together(lambda: self.keep(kept), main_only=True)
        if not kept:
            return
        newest = kept[-1]
        try:
            run = self.read(newest)
            self.accelerator.load_state(str(newest))
        except READ_ERRORS as error:
            if isinstance(error, OptionError):
                raise
            raise CheckpointError(
                f"cannot read checkpoint {newest}: {error}. Remove it to go on from the one "
                "before, or start over with --resume false."
            ) from error
        vars(self.progress).update(run["progress"])

    def read(self, checkpoint: Path) -> dict[str, Any]:
        """Content of `run.json`, after everything in the folder is found to be what was written."""
        text = (checkpoint / RUN_FILE).read_text(errors="replace")
        content = unsealed(text)
        if content is None and f'"{DIGEST}"' not in text:
            raise CheckpointError(
                f"{RUN_FILE} has no SHA-256 of what was written: it is damaged, or of an older "
                "version of this example"
            )
        if content is None:
            raise CheckpointError(f"{RUN_FILE} is not what was written, by its SHA-256")
        self.require_same_options(checkpoint, content["options"])
        here = {"processes": self.accelerator.num_processes, "steps": self.steps}
        for name, value in here.items():
            if content[name] != value:
                raise OptionError(
                    f"{checkpoint} belongs to a run of {content[name]} {name}, this one has "
                    f"{value}. Name another --output_dir, or start over with --resume false."
                )
        step = content["progress"]["step"]
        if checkpoint.name != f"checkpoint_{step!r}":
            raise CheckpointError(f"{checkpoint / RUN_FILE} is that of step {step}")
        for name, digest in content["files"].items():
            if not (checkpoint / name).is_file():
                raise CheckpointError(f"{name} is missing")
            if digest_of(checkpoint / name) != digest:
                raise CheckpointError(f"{name} is not what was written, by its SHA-256")
        return content

    def require_same_options(self, checkpoint: Path, stored: dict) -> None:
        """Refuse a checkpoint of a run with other options, and name them."""
        wanted = self.config.numeric_options()
        differences = [
            f"--{name} {stored.get(name)!r} there, {wanted.get(name)!r} now"
            for name in sorted(stored.keys() | wanted.keys())
            if stored.get(name) != wanted.get(name)
        ]
        if differences:
            raise OptionError(
                f"{checkpoint} belongs to a run with other options ({'; '.join(differences)}). "
                "Name another --output_dir, or start over with --resume false."
            )
