"""Parts of the study, each kept in a file once it is finished: a study that stopped goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from examples.files import is_kept, read_json, require_kept, write_json, write_kept
from examples.studies.cma_clip.config import StudyConfig
from examples.studies.cma_clip.encoders import token_encoder
from examples.studies.cma_clip.prepare import DataSet, aligned_encoders, kept_encoders
from examples.studies.cma_clip.sources import CachedTokens, LiveTokens
from examples.studies.cma_clip.study import shared_data

from .plan import CELLS
from .run import Material, fit, run
from .texts import Texts, load_texts
from .tuning import Grids

UNTRAINED = 1e-3  # a rate that nothing is trained at, for rows without training


def texts_of(config: StudyConfig, data: DataSet) -> Texts:
    """The texts of the study; their file is written before the workers start."""
    return load_texts(config, data, config.output_path / "texts.pt")


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
    cache = LiveTokens(encoders, texts_of(config, data).observations).cache()
    config.encoder_config().output_path.mkdir(parents=True, exist_ok=True)
    write_kept(tokens_file(config), lambda path: torch.save(cache.state(), path))


def material(config: StudyConfig) -> Material:
    """What the runs of a split share."""
    torch.set_num_threads(1)
    tokens = CachedTokens.load(torch.load(require_kept(tokens_file(config)), weights_only=True))
    data, dual = shared_data(config), kept_encoders(config)
    return Material(config, data, texts_of(config, data), dual, tokens)


def tune(config: StudyConfig, grids: Grids) -> dict[str, dict[str, float]]:
    """Validation accuracy of every trained row at its rates, from one seed, without noise."""
    shared = material(config)

    def trial(row: str, rate: float) -> dict[str, float]:
        _, result, _ = fit(shared, "clean", row, 0, rate, checkpoints(config))
        return {"validation": max(result.validation)}

    return {
        row: {
            f"{rate:g}": kept(config, f"rate {rate:g} {row}", trial, row, rate)["validation"]
            for rate in rates
        }
        for row, rates in grids.items()
    }


def train_all(
    config: StudyConfig, rates: dict[str, float], number: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """All cells on a split, from one seed."""
    shared, folder = material(config), checkpoints(config)

    def train(condition: str, row: str) -> dict[str, Any]:
        rate = rates.get(row, UNTRAINED)
        name = f"{condition} {row} {number}"
        return kept(config, name, run, shared, condition, row, number, rate, folder)

    return {cell: train(*cell) for cell in CELLS}


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
