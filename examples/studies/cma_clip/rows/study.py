"""The whole study: align, choose rates on validation, train and test, write."""

import json
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mxm_kernels
from examples.errors import OptionError
from examples.files import write_whole
from examples.options import (
    Count,
    OptionGroup,
    PositiveCount,
    Seed,
    Workers,
    option,
    require_seeds,
    require_writable,
)
from examples.studies.cma_clip.config import Layers, StudyConfig
from examples.studies.cma_clip.folder import require_same_options
from examples.studies.cma_clip.prepare import load_data
from examples.studies.cma_clip.study import PACKAGES, processes
from examples.studies.machine import machine

from . import numbers
from .naming import captions_of, shares
from .parts import align, texts_of, train_all, tune
from .plan import CELLS
from .tuning import TUNING_SPLITS, best, tuned

RESULTS = Path(__file__).parents[1] / "results"
# The study sets these itself, or has no use for them: its encoders stay frozen.
UNUSED = (
    "noise",
    "sequence_attention",
    "modality_attention",
    "contrastive_weight",
    "lr",
    "encoder_lr",
    "seed",
)


@dataclass
class RowsConfig(StudyConfig):
    """Options of a run: one layer, and the warm-up stage alone."""

    layers: Layers = option(1, "layers of the sequence-wise attention transformer")
    stage_epochs: list[Count] = field(
        default_factory=lambda: [16, 0, 0],
        metadata={"help": "epochs of the warm-up stage; the other two are 0 here"},
    )
    output_dir: str = option("runs/cma_rows", "folder of unfinished parts")

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.stage_epochs[1:]):
            raise OptionError(
                "--stage_epochs: the encoders stay frozen here, so the second and the third "
                f"number must be 0, not {self.stage_epochs[1:]}"
            )
        if not 0 < self.noise_rate < 1:
            raise OptionError(
                f"--noise_rate must lie strictly between 0 and 1, not {self.noise_rate}"
            )


@dataclass
class Rows(OptionGroup):
    """Options of the study, beside those of its runs."""

    splits: list[Seed] = field(
        default_factory=lambda: [2022, 2023, 2024, 2025, 2026],
        metadata={"help": "seeds of the splits and of the aligned encoders, two or more"},
    )
    seeds: PositiveCount = option(3, "runs on every split: initial weights, batches and noise")
    workers: Workers = option(2, "processes, of one thread each")
    results_dir: str = option(str(RESULTS), "folder of the JSON file, the page and the figure")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seeds(self.splits)
        if len(self.splits) < TUNING_SPLITS:
            raise OptionError(
                f"--splits must name {TUNING_SPLITS} seeds or more, not {len(self.splits)}"
            )


def run_study(config: RowsConfig, study: Rows) -> dict[str, Any]:
    """Run everything, and collect it."""
    require_unused(config)
    folder = config.output_path
    for name, path in (("output_dir", folder), ("results_dir", Path(study.results_dir))):
        require_writable(name, path)
    options = {k: v for k, v in config.numeric_options().items() if k not in UNUSED}
    require_same_options(folder, options, "study")
    data = load_data(config, folder / "observations.pt")
    texts_of(config, data)
    splits = [replace(config, seed=seed) for seed in study.splits]
    chosen = splits[:TUNING_SPLITS]
    with processes(study.workers) as run_all:
        for done, _ in enumerate(run_all(align, splits), 1):
            print(f"aligned encoders of {done} of {len(splits)} splits", flush=True)
        tuning = tuned(lambda grids: run_all(tune, chosen, [grids] * len(chosen)))
        rates = {row: best(trials) for row, trials in tuning.items()}
        print(f"rates: {rates}", flush=True)
        # Seed by seed: a study that is stopped has whole seeds, and fewer of them can be asked for.
        jobs = [(split, rates, seed) for seed in range(study.seeds) for split in splits]
        outcomes = []
        for outcome in run_all(train_all, *zip(*jobs, strict=True)):
            outcomes.append(outcome)
            print(f"trained {len(outcomes)} of {len(jobs)}", flush=True)
    runs = {
        cell: [[o[cell] for o in outcomes[place :: len(splits)]] for place in range(len(splits))]
        for cell in CELLS
    }
    found = numbers.cells(runs, len(data.instances))
    captions = captions_of(data.instances, data.labels)
    return {
        "splits": study.splits,
        "seeds": study.seeds,
        "options": options,
        "classes": data.labels.counts,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "captions": {
            "number": len(captions),
            "lacking": sum(c.lacks for c in captions),
            "shares": shares(captions, list(data.labels.classes)),
        },
        "tuning": tuning,
        "primary": numbers.primary(runs, found, len(data.instances)),
        "cells": found,
    }


def require_unused(config: RowsConfig) -> None:
    """Refuse options that would have no effect."""
    for name in UNUSED:
        if getattr(config, name) != getattr(RowsConfig, name):
            raise OptionError(
                f"--{name} has no effect in this study, which sets it itself; leave it out"
            )


def save(report: dict[str, Any], folder: Path) -> None:
    """Write the results, the page and the figure."""
    from .figure import save_figure
    from .report import markdown

    text = (
        json.dumps(report, separators=(",", ":")).replace('{"condition"', '\n{"condition"') + "\n"
    )
    write_whole(folder / "rows.json", lambda path: path.write_text(text))
    (folder / "rows.md").write_text(markdown(report), encoding="utf-8")
    save_figure(report, folder / "rows.svg")
    print(f"Results, page and figure: {folder}")
