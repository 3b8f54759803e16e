"""The output folder of a run: its unfinished parts are used again, by the same options only."""

import json
from pathlib import Path
from typing import Any

from examples.files import write_whole
from examples.options import OptionError

OPTIONS_FILE = "options.json"


def require_same_options(folder: Path, wanted: dict[str, Any], kind: str) -> None:
    """Keep the options in the folder; refuse to go on with parts that other options made.

    Args:
        folder: of the run; made if it is not there.
        wanted: options that its parts depend on.
        kind: what made the parts, for the message.

    Raises:
        OptionError: the folder has parts of other options, which the message names.

    """
    file = folder / OPTIONS_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda path: path.write_text(json.dumps(wanted, indent=1)))
        return
    stored = json.loads(file.read_text())
    differences = [name for name in wanted if stored.get(name) != wanted[name]]
    if differences:
        raise OptionError(
            f"{folder} has parts of a {kind} with another {', '.join(differences)}; "
            "name another --output_dir or remove it"
        )
