"""The output folder of a run: its unfinished parts are used again, by the same options only."""

from pathlib import Path
from typing import Any

from examples.errors import OptionError
from examples.files import read_json, write_json

OPTIONS_FILE = "options.json"


def require_same_options(folder: Path, wanted: dict[str, Any], kind: str) -> None:
    """Keep the options in the folder; refuse to go on with parts that other options made.

    Args:
        folder: of the run; made if it is not there.
        wanted: options that its parts depend on.
        kind: what made the parts, for the message.

    Raises:
        OptionError: the folder has parts of other options, which the message names.
        CheckpointError: the options have changed since they were written.

    """
    file = folder / OPTIONS_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, wanted)
        return
    stored = read_json(file)
    differences = [name for name in wanted if stored.get(name) != wanted[name]]
    if differences:
        raise OptionError(
            f"{folder} has parts of a {kind} with another {', '.join(differences)}; "
            "name another --output_dir or remove it"
        )
