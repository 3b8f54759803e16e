"""The report of a study: the JSON file that its tables and plot are made from."""

import json
from pathlib import Path
from typing import Any

from examples.errors import OptionError


def read_report(file: Path) -> dict[str, Any]:
    """Read a report that a study wrote.

    Raises:
        OptionError: there is none, or it is not JSON.

    """
    if not file.exists():
        raise OptionError(f"--tables_only: there is no {file}")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise OptionError(f"--tables_only: {file} is not JSON: {error}") from error
