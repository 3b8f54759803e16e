"""Command line: `python -m examples.studies.cma_clip.rows --help` (or `make cma-rows`)."""

from pathlib import Path

from examples.errors import exit_status
from examples.options import parse, require_one_process

from .study import Rows, RowsConfig, run_study, save

PROG = "python -m examples.studies.cma_clip.rows"
AGAIN = "Finished parts are kept; run the same command again to go on from them."


def main(arguments: list[str] | None = None) -> int:
    """Train and test the rows that CMA-CLIP's tables lack, on emoji, with frozen encoders.

    Image only, text only, prompts of the class names; noise in the images beside noise in the
    texts; captions with a class name put in. Rates are chosen on validation.
    """

    def work() -> None:
        config, study = parse(arguments, [RowsConfig, Rows], PROG, main.__doc__)
        require_one_process(PROG)
        save(run_study(config, study), Path(study.results_dir))

    return exit_status(work, AGAIN)


if __name__ == "__main__":
    raise SystemExit(main())
