"""Runs the cells of the tour as a script: `python -m examples.tour [FOLDER]`."""

import argparse
import runpy
from pathlib import Path

from ..errors import OptionError, exit_status

CELLS = Path(__file__).with_name("cells.py")
FOLDER = Path("runs/tour")


def run(cells: Path, folder: Path) -> None:
    """Run all cells, with their figures in a folder.

    Raises:
        OptionError: a package is missing.

    """
    try:
        import matplotlib

        matplotlib.use("Agg")  # files, no windows
        runpy.run_path(str(cells), {"FIGURES": folder})
    except ModuleNotFoundError as error:
        raise OptionError(
            f"the tour needs the package {error.name}, which is not installed; "
            "pip install -e '.[examples]' installs what it needs"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Compute, plot and train on 300 emoji; about a minute on a CPU."""
    parser = argparse.ArgumentParser("python -m examples.tour", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="of the figures")
    folder = parser.parse_args(arguments).folder

    def work() -> None:
        run(CELLS, folder)
        print(f"Figures: {', '.join(str(path) for path in sorted(folder.glob('*.png')))}")

    return exit_status(work, "Run the same command again: the tour starts from the beginning.")


if __name__ == "__main__":
    raise SystemExit(main())
