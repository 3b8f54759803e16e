"""Checkpoints that are whole or do not count.

Accelerate writes model, teacher, optimiser and schedule into `checkpoints/checkpoint_STEP`, and
removes the oldest folder. The file `run.json`, with what the run has done, is written last, after
the others are on the disk: a folder without it is unfinished, and the next start removes it.

No file of a checkpoint can run code when it is loaded: weights are safetensors, the progress is
JSON, and Accelerate reads the rest with `weights_only`. (What is registered with Accelerate's
`register_for_checkpointing` it would unpickle.)
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError

from ..files import flush, write_whole
from ..options import OptionError
from .config import CheckpointError, Config
from .retrieval import Metrics

RUN_FILE = "run.json"
# Accelerate would warn of every old checkpoint that it removes.
logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)


@dataclass
class Progress:
    """What a run has done, as it is kept in a checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    before: Metrics | None = None
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run; `progress` is what they keep beside Accelerate's state."""

    def __init__(self, accelerator: Accelerator, config: Config, progress: Progress) -> None:
        self.accelerator, self.config, self.progress = accelerator, config, progress
        self.folder = config.output_path / "checkpoints"

    def complete(self) -> list[Path]:
        """Folders of the complete checkpoints, oldest first."""
        folders = [path.parent for path in self.folder.glob(f"checkpoint_*/{RUN_FILE}")]
        return sorted(folders, key=lambda folder: int(folder.name.rpartition("_")[2]))

    def save(self) -> None:
        """Write a checkpoint; where this fails, remove what was written of it and say why."""
        folder = self.folder / f"checkpoint_{self.progress.step}"
        self.accelerator.project_configuration.iteration = self.progress.step
        try:
            self.accelerator.save_state()
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                for path in (*folder.iterdir(), self.folder):
                    flush(path)
                run = {"options": self.config.numeric_options(), "progress": asdict(self.progress)}
                write_whole(folder / RUN_FILE, lambda path: path.write_text(json.dumps(run)))
        # PyTorch's writer, safetensors and the rest raise these; some do not name a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            free = shutil.disk_usage(self.config.output_path).free
            shutil.rmtree(folder, ignore_errors=True)
            last = self.complete()[-1] if self.complete() else "none"
            raise CheckpointError(
                f"cannot write checkpoint {folder}: {error} ({free:,} bytes were free; the last "
                f"complete checkpoint is {last})"
            ) from error
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Load the newest checkpoint, if there is one and the user wants to go on from it."""
        if self.accelerator.is_main_process:
            kept = self.complete() if self.config.resume else []
            for folder in set(self.folder.glob("checkpoint_*")) - set(kept):
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        if not (complete := self.complete()):
            return
        newest = complete[-1]
        try:
            run = json.loads((newest / RUN_FILE).read_text())
            self.require_same_options(newest, run["options"])
            self.accelerator.load_state(str(newest))
            vars(self.progress).update(run["progress"])
        except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
            if isinstance(error, OptionError):
                raise
            raise CheckpointError(
                f"cannot read checkpoint {newest}: {error}. Remove it to go on from the one before."
            ) from error

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
