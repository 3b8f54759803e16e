"""Tables and plots from the results: the speeds in the README and the documentation.

    python -m bench.report [--results FOLDER] [--page FILE ...]

For every results file NAME.json it writes NAME.md with all tables, and NAME-*.svg, beside it. In
the pages, README.md and docs/performance.md, it replaces what stands between
``<!-- bench:begin NAME/TABLE -->`` and ``<!-- bench:end NAME/TABLE -->`` by that table of that
machine.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bench.machine import ROOT
from bench.models.rates import cubed_rates
from bench.plots import draw
from bench.ratios import with_cubed
from bench.results_file import RESULTS, Record, read
from bench.tables import TABLES, TITLES

PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
_MARKED = re.compile(r"(<!-- bench:begin (\S+) -->\n).*?(<!-- bench:end \2 -->)", re.DOTALL)

CASES = """\
A case has a name such as "420 x 350 x 512, R 10, teacher, bfloat16": 420 images, 350 texts,
features of 512 numbers, 10 random rounds, with a momentum teacher, in bfloat16. In "pairs" every
instance is one image and one text, and the loss is CLIP's, or with "sigmoid" SigLIP's. "Budget" is
the memory budget where it is not the default. Compare times within a case: other machines and
other days have other seconds."""


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
    parts += [CASES]
    for table, make in TABLES.items():
        if text := make(records):
            parts.append(f"## {TITLES.get(table, table.capitalize())}\n\n{text}")
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


def report(folder: Path, pages: Sequence[Path] = (), with_plots: bool = True) -> list[Path]:
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
    for marked in pages:
        filled = fill(marked.read_text(), tables)
        if filled != marked.read_text():
            marked.write_text(filled)
            written.append(marked)
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--page", type=Path, nargs="+", default=PAGES, help="files whose marked places are filled"
    )
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    arguments = parser.parse_args()
    for path in report(arguments.results, arguments.page, not arguments.no_plots):
        print(path)


if __name__ == "__main__":
    main()
