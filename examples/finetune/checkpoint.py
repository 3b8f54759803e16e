"""Checkpoints that are whole or not there.

Accelerate writes model, optimiser, scheduler, and what is registered with it (teacher and
progress), into a folder with a temporary name. Its files are flushed to the disk, and only then is
it renamed to its final name, which is atomic: a crash at any moment leaves the last good one.
"""

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from .config import Config, OptionError

PREFIX, TEMPORARY = "step_", ".writing_"
OPTIONS_FILE = "options.json"


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/` of its output folder.

    Args:
        accelerator: holds what a checkpoint consists of, prepared or registered.
        config: options of the run; a checkpoint of other options is refused.
        keep: number of the newest checkpoints that are kept.

    """

    def __init__(self, accelerator: Accelerator, config: Config, keep: int = 2) -> None:
        self.accelerator, self.config, self.keep = accelerator, config, keep
        self.folder = config.output_path / "checkpoints"

    def complete(self) -> list[Path]:
        """Folders of the complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{PREFIX}*"))

    def save(self, step: int) -> Path:
        """Write the checkpoint of a step, then remove those that are not kept."""
        final = self.folder / f"{PREFIX}{step:08d}"
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            options = json.dumps(self.config.numeric_options(), indent=2)
            (temporary / OPTIONS_FILE).write_text(options)
            publish(temporary, final)
            for old in self.complete()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return final

    def restore(self) -> bool:
        """Load the newest checkpoint; False if there is none or the user wants a fresh start."""
        if self.accelerator.is_main_process:
            self.remove(self.folder.glob(f"{TEMPORARY}*"))
            if not self.config.resume:
                self.remove(self.complete())
        self.accelerator.wait_for_everyone()
        checkpoints = self.complete()
        if not checkpoints:
            return False
        self.require_same_options(checkpoints[-1])
        self.accelerator.load_state(str(checkpoints[-1]))
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


def publish(temporary: Path, final: Path) -> None:
    """Flush a folder to the disk and give it its final name."""
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
