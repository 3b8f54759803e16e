"""The whole study: align, choose rates on validation, train and test, write."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import mxm_kernels
from examples.errors import OptionError
from examples.files import is_kept, read_json, require_kept, write_json, write_kept, write_whole
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
from examples.studies.cma_clip.encoders import token_encoder
from examples.studies.cma_clip.folder import require_same_options
from examples.studies.cma_clip.prepare import aligned_encoders, kept_encoders, load_data
from examples.studies.cma_clip.sources import CachedTokens, LiveTokens
from examples.studies.cma_clip.study import PACKAGES, processes, shared_data
from examples.studies.machine import machine

from . import numbers
from .naming import captions_of, shares
from .plan import CELLS, RATES, TRAINED, TUNING_SPLITS
from .run import Material, fit, run
from .texts import Texts, load_texts

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
    texts_of(config)
    splits = [replace(config, seed=seed) for seed in study.splits]
    with processes(study.workers) as run_all:
        for done, _ in enumerate(run_all(align, splits), 1):
            print(f"aligned encoders of {done} of {len(splits)} splits", flush=True)
        tried = list(run_all(tune, splits[:TUNING_SPLITS]))
        tuning = {row: {f"{r:g}": [t[row][f"{r:g}"] for t in tried] for r in RATES} for row in TRAINED}
        rates = {row: chosen(trials) for row, trials in tuning.items()}
        print(f"rates: {rates}", flush=True)
        count = len(splits)
        outcomes = []
        for outcome in run_all(train_all, splits, [rates] * count, [study.seeds] * count):
            outcomes.append(outcome)
            print(f"split {len(outcomes)} of {count}: done", flush=True)
    runs = {cell: [outcome[cell] for outcome in outcomes] for cell in CELLS}
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
            raise OptionError(f"--{name} has no effect in this study, which sets it itself; leave it out")


def texts_of(config: StudyConfig) -> Texts:
    """The texts of the study; their file is written before the workers start."""
    return load_texts(config, shared_data(config), config.output_path / "texts.pt")


def tokens_file(config: StudyConfig) -> Path:
    """Where the tokens of everything by the aligned encoders of a split are."""
    return config.encoder_config().output_path / "rows_tokens.pt"


def align(config: StudyConfig) -> None:
    """Align the encoders of a split, and keep the tokens of all images and texts."""
    torch.set_num_threads(1)
    if is_kept(tokens_file(config)):
        return
    data = shared_data(config)
    encoders = token_encoder(aligned_encoders(config, data, progress=False))
    cache = LiveTokens(encoders, texts_of(config).observations).cache()
    config.encoder_config().output_path.mkdir(parents=True, exist_ok=True)
    write_kept(tokens_file(config), lambda path: torch.save(cache.state(), path))


def material(config: StudyConfig) -> Material:
    """What the runs of a split share."""
    torch.set_num_threads(1)
    tokens = CachedTokens.load(torch.load(require_kept(tokens_file(config)), weights_only=True))
    data, dual = shared_data(config), kept_encoders(config)
    return Material(config, data, texts_of(config), dual, tokens)


def tune(config: StudyConfig) -> dict[str, dict[str, float]]:
    """Validation accuracy of every trained row at every rate, from one seed, without noise."""
    shared = material(config)

    def trial(row: str, rate: float) -> dict[str, float]:
        _, result, _ = fit(shared, "clean", row, 0, rate, checkpoints(config))
        return {"validation": max(result.validation)}

    return {
        row: {
            f"{rate:g}": kept(config, f"rate {rate:g} {row}", trial, row, rate)["validation"]
            for rate in RATES
        }
        for row in TRAINED
    }


def chosen(trials: dict[str, list[float]]) -> float:
    """Rate with the best mean."""
    return float(max(trials, key=lambda rate: fmean(trials[rate])))


def train_all(
    config: StudyConfig, rates: dict[str, float], seeds: int
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All cells on a split, from every seed."""
    shared = material(config)
    return {
        (condition, row): [
            kept(
                config,
                f"{condition} {row} {number}",
                run,
                shared,
                condition,
                row,
                number,
                rates.get(row, RATES[0]),
                checkpoints(config),
            )
            for number in range(seeds)
        ]
        for condition, row in CELLS
    }


def checkpoints(config: StudyConfig) -> Path:
    """Folder of the best epoch of the run at hand."""
    return config.output_path / f"checkpoints_{config.seed}"


def kept(config: StudyConfig, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """What a run came to, from its file or by running it."""
    safe = "".join(c if c.isalnum() or c == "." else "_" for c in name)
    file = config.output_path / f"split_{config.seed}" / f"{safe}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make(*arguments))
    return read_json(file)


def save(report: dict[str, Any], folder: Path) -> None:
    """Write the results, the page and the figure."""
    from .figure import save_figure
    from .report import markdown

    text = json.dumps(report, separators=(",", ":")).replace('{"condition"', '\n{"condition"') + "\n"
    write_whole(folder / "rows.json", lambda path: path.write_text(text))
    (folder / "rows.md").write_text(markdown(report), encoding="utf-8")
    save_figure(report, folder / "rows.svg")
    print(f"Results, page and figure: {folder}")
