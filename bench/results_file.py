"""The results of one machine: a JSON file, one record a line, newest measurement of each kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils._pytree import tree_map_only

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def _key(record: Record) -> tuple:
    return record["group"], record["case"]["name"], record["provider"]


class Results:
    """Records of one machine; every ``add`` is on disk at once, so a killed run keeps them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read(path) if path.exists() else []

    def add(self, new: list[Record]) -> None:
        """Replace the records of the same group, case and provider, or append."""
        keys = {_key(record) for record in new}
        self.records = [r for r in self.records if _key(r) not in keys] + new
        lines = ",\n".join(json.dumps(_short(record)) for record in self.records)
        text = f'{{"schema": {SCHEMA}, "records": [\n{lines}\n]}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.path)


def _short(value: Any) -> Any:
    """Five significant digits: what lies behind them is noise."""
    return tree_map_only(float, lambda number: float(f"{number:.5g}"), value)


def timed(records: list[Record]) -> list[Record]:
    """Those that were timed."""
    return [r for r in records if "seconds" in r]


def read(path: Path) -> list[Record]:
    """The records of a results file.

    Raises:
        ValueError: the file has another schema.
    """
    content = json.loads(path.read_text())
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected results of schema {SCHEMA}, got {schema}")
    return content["records"]
