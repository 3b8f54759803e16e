"""Checkpoints that are whole or not there.

Accelerate writes model, optimiser and scheduler, and we the teacher and the progress, into a
folder with a temporary name. Its files are flushed to the disk, and only then is it renamed to its
final name, which is atomic: a crash at any moment leaves the last good one.

No file of a checkpoint can run code when it is loaded: weights are safetensors, the progress is
JSON, and Accelerate reads the rest with `weights_only`. (What is registered with Accelerate's
`register_for_checkpointing` it would unpickle.)
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from .config import Config, OptionError
from .retrieval import Metrics

PREFIX, TEMPORARY = "step_", ".writing_"
OPTIONS_FILE, PROGRESS_FILE, TEACHER_FILE = "options.json", "progress.json", "teacher.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it and says why."""


@dataclass
class Progress:
    """What a run has done, as it is kept in a checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    before: Metrics | None = None
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/` of its output folder.

    Args:
        accelerator: holds the model, the optimiser and the scheduler, prepared.
        config: options of the run; a checkpoint of other options is refused.
        progress: what the run has done; restoring changes it in place.
        teacher: the momentum model, if there is one.
        keep: number of the newest checkpoints that are kept.

    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: Config,
        progress: Progress,
        teacher: nn.Module | None = None,
        keep: int = 2,
    ) -> None:
        self.accelerator, self.config, self.keep = accelerator, config, keep
        self.progress, self.teacher = progress, teacher
        self.folder = config.output_path / "checkpoints"

    def complete(self) -> list[Path]:
        """Folders of the complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{PREFIX}*"))

    def save(self, step: int) -> Path:
        """Write the checkpoint of a step, then remove those that are not kept.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full. What was
                written of it is removed, and the last complete checkpoint is still there.

        """
        final = self.folder / f"{PREFIX}{step:08d}"
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        try:
            self._write(temporary, final)
        # What PyTorch's writer, safetensors and the rest raise when a write fails.
        except (OSError, RuntimeError, SafetensorError) as error:
            # PyTorch's writer does not say that the disk is full.
            free = shutil.disk_usage(self.config.output_path).free
            shutil.rmtree(temporary, ignore_errors=True)
            complete = self.complete()
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error} ({free:,} bytes were free; the last "
                f"complete checkpoint is {complete[-1] if complete else 'none'})"
            ) from error
        return final

    def _write(self, temporary: Path, final: Path) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            options = json.dumps(self.config.numeric_options(), indent=2)
            (temporary / OPTIONS_FILE).write_text(options)
            (temporary / PROGRESS_FILE).write_text(json.dumps(vars(self.progress)))
            if self.teacher is not None:
                save_model(self.teacher, str(temporary / TEACHER_FILE))
            publish(temporary, final)
            for old in self.complete()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def restore(self) -> bool:
        """Load the newest checkpoint; False if there is none or the user wants a fresh start.

        Raises:
            OptionError: it belongs to a run with other options.
            CheckpointError: it is damaged.

        """
        if self.accelerator.is_main_process:
            self.remove(self.folder.glob(f"{TEMPORARY}*"))
            if not self.config.resume:
                self.remove(self.complete())
        self.accelerator.wait_for_everyone()
        checkpoints = self.complete()
        if not checkpoints:
            return False
        newest = checkpoints[-1]
        try:
            self.require_same_options(newest)
            self.accelerator.load_state(str(newest))
            vars(self.progress).update(json.loads((newest / PROGRESS_FILE).read_text()))
            if self.teacher is not None:
                load_model(self.teacher, str(newest / TEACHER_FILE))
        except OptionError:
            raise
        except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read checkpoint {newest}: {error}. Remove it to go on from the one before."
            ) from error
        return True

    def require_same_options(self, checkpoint: Path) -> None:
        """Refuse a checkpoint of a run with other options, and name them."""
        stored = json.loads((checkpoint / OPTIONS_FILE).read_text())
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

    @staticmethod
    def remove(folders) -> None:
        """Remove some folders."""
        for folder in folders:
            shutil.rmtree(folder)


def write_whole(final: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name, then give it its final name."""
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    try:
        write(temporary)
        publish(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Flush a file or a folder to the disk and give it its final name."""
    for path in [*temporary.rglob("*"), temporary]:
        flush(path)
    os.replace(temporary, final)
    flush(final.parent)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
