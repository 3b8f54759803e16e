"""The files of a run: JSON that is rewritten by rename, so that one cut off keeps what it had."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Results:
    """One file; its first level of keys is merged, whoever writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """What is there."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def keep(self, found: dict[str, Any]) -> None:
        """Add or replace keys."""
        temporary = self.path.with_suffix(".new")
        text = json.dumps({**self.read(), **found}, indent=1, allow_nan=False)
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)
