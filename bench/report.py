"""Tables and plots from the results: every number in the README comes from here.

    python -m bench.report [--results FOLDER] [--readme FILE]

For every results file NAME.json: NAME.md with all tables and NAME-*.svg, beside it. In the
README, what stands between ``<!-- bench:begin NAME/TABLE -->`` and
``<!-- bench:end NAME/TABLE -->`` is replaced by that table of that machine.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from bench.machine import ROOT
from bench.models.rates import cubed_rates
from bench.plots import draw
from bench.results_file import RESULTS, Record, read
from bench.tables import TABLES
from bench.targets import with_cubed

_MARKED = re.compile(r"(<!-- bench:begin (\S+) -->\n).*?(<!-- bench:end \2 -->)", re.DOTALL)


def results_files(folder: Path) -> list[Path]:
    """The files of ``folder`` that hold benchmark records."""
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if isinstance(content := json.loads(path.read_text()), dict) and "records" in content
    ]


def rated(path: Path) -> list[Record]:
    """The records of ``path``, held to the ceilings of their GPU where they lie beside it."""
    cubed = cubed_rates(path.parent)
    return [with_cubed(record, cubed) for record in read(path)]


def page(name: str, records: list[Record], images: list[Path]) -> str:
    """All tables and plots of a machine."""
    parts = [f"# {name}\n\nWritten by `python -m bench.report` from [{name}.json]({name}.json)."]
    parts += [f"## {table.capitalize()}\n\n{make(records)}" for table, make in TABLES.items()]
    parts += [f"![{image.stem}]({image.name})" for image in images]
    return "\n\n".join(parts) + "\n"


def fill(text: str, tables: dict[str, str]) -> str:
    """``text`` with its marked places filled.

    Raises:
        KeyError: a mark names a machine or table that there is not.
    """

    def replaced(match: re.Match) -> str:
        return f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}"

    return _MARKED.sub(replaced, text)


def report(folder: Path, readme: Path | None = None, with_plots: bool = True) -> list[Path]:
    """Write everything; the files written."""
    written: list[Path] = []
    tables: dict[str, str] = {}
    for path in results_files(folder):
        records = rated(path)
        images = draw(records, folder, path.stem) if with_plots else []
        out = path.with_suffix(".md")
        out.write_text(page(path.stem, records, images))
        written += [out, *images]
        tables |= {f"{path.stem}/{name}": make(records) for name, make in TABLES.items()}
    if readme is not None and readme.exists():
        filled = fill(readme.read_text(), tables)
        if filled != readme.read_text():
            readme.write_text(filled)
            written.append(readme)
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    arguments = parser.parse_args()
    for path in report(arguments.results, arguments.readme, not arguments.no_plots):
        print(path)


if __name__ == "__main__":
    main()
