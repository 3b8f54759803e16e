"""The command line of a study that writes one page and its records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]


def run(about: str, measure: Callable[[], Records], page: Callable[[Records], str]) -> None:
    """Measure and print the page; ``--out FILE`` writes it, and the records beside it as JSON."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table as Markdown, and JSON beside it")
    arguments = parser.parse_args()
    records = measure()
    text = page(records)
    if arguments.out:
        arguments.out.write_text(text)
        arguments.out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
    print(text)
