"""One run: data, encoders, training with checkpoints, metrics before and after.

MFH and the CLIP baseline share everything but the loss and what it sees: the same encoders and
initial weights, the same instances in every batch, the same number of optimiser steps, optimiser,
schedule and learning rates. Not equal is the number of images and captions per step: MFH takes all
that an instance has, the baseline draws one image and one caption of each at random, anew in every
epoch; equal numbers of rows would mean unequal numbers of instances or of steps.
"""

import json
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from safetensors.torch import save_model
from torch import Tensor

from .checkpoint import write_whole
from .config import Config
from .data import load_splits
from .dual_encoder import Encoders
from .observations import Material, observe
from .retrieval import Metrics, average
from .towers import build_encoders
from .trainer import Trainer


@dataclass
class Result:
    """Outcome of a run, with what its figure shows."""

    before: Metrics
    after: Metrics
    losses: list[float]
    images: Tensor
    texts: Tensor
    material: Material
    seconds: float
    is_main_process: bool

    def summary(self) -> dict[str, Any]:
        """Numbers for a JSON file."""
        return {
            "before": self.before,
            "after": self.after,
            "average_recall": average(self.after),
            "losses": self.losses,
            "training_seconds": self.seconds,
        }


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate, with a batch shared between processes rather than one batch for each."""
    return Accelerator(
        mixed_precision=config.precision,
        cpu=config.cpu,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def make_material(config: Config, encoders: Encoders, accelerator: Accelerator) -> Material:
    """Load the data and run the frozen trunks over it."""
    splits = load_splits(config)
    instances = getattr(splits, config.eval_split)
    shown = accelerator.is_local_main_process
    return Material(
        instances,
        observe(splits.train, encoders, accelerator.device, shown),
        observe(instances, encoders, accelerator.device, shown),
    )


def run(config: Config, material: Material | None = None, progress_bar: bool = True) -> Result:
    """Train and evaluate as the configuration says.

    Raises:
        InterruptedRunError: on SIGINT or SIGTERM, after the running step is in a checkpoint.
        CheckpointError: a checkpoint cannot be written or read.

    """
    config.output_path.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    encoders = build_encoders(config)
    material = material or make_material(config, encoders, accelerator)
    trainer = Trainer(config, accelerator, encoders.model, material)
    trainer.checkpoints.restore()
    if trainer.progress.before is None:
        trainer.progress.before, *_ = trainer.evaluate()
    trainer.train(progress_bar)
    after, images, texts = trainer.evaluate()
    result = Result(
        before=trainer.progress.before,
        after=after,
        losses=trainer.progress.losses,
        images=images,
        texts=texts,
        material=material,
        seconds=trainer.progress.seconds,
        is_main_process=accelerator.is_main_process,
    )
    if accelerator.is_main_process:
        weights, metrics = (
            config.output_path / "model.safetensors",
            config.output_path / "metrics.json",
        )
        write_whole(weights, lambda path: save_model(trainer.student, str(path)))
        text = json.dumps(result.summary(), indent=2)
        write_whole(metrics, lambda path: path.write_text(text))
    accelerator.free_memory()
    return result
