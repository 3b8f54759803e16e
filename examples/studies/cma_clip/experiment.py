"""One run: the stages, then the test split with and without noise."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from .config import Config
from .encoders import token_encoder
from .evaluate import Evaluation, evaluate
from .model import CMAClip
from .prepare import DataSet, device_of
from .sources import CachedTokens, LiveTokens, TokenSource
from .stages import Stage, StageResult, Training, three_stages, train

WEIGHT_BINS = 20


def build_model(config: Config, dual: Any, counts: dict[str, int]) -> CMAClip:
    """CMA-CLIP over a dual encoder, its new parts drawn from the seed."""
    return CMAClip(
        token_encoder(dual),
        counts,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        dropout=config.dropout,
        sequence_attention=config.sequence_attention,
        modality_attention=config.modality_attention,
        seed=config.seed,
    )


class Experiment:
    """A model with its data, ready for its stages.

    Args:
        config: options.
        data: the data set.
        dual: dual encoder that the stages start from; it is trained.
        cache: tokens of that dual encoder, if they have been computed already.

    """

    def __init__(
        self, config: Config, data: DataSet, dual: Any, cache: CachedTokens | None = None
    ) -> None:
        self.device = device_of(config)
        self.config, self.data, self.cache = config, data, cache
        self.model = build_model(config, dual, data.labels.counts).to(self.device)
        self.results: list[StageResult] = []

    def stages(self) -> list[Stage]:
        """The three stages of the options."""
        return three_stages(self.config.stage_epochs, self.config.lr, self.config.encoder_lr)

    def train(self, stages: list[Stage], verbose: bool = False) -> None:
        """Run some stages; print a line after every epoch if `verbose`."""
        config, noise = self.config, self.config.noise_of()
        training = Training(
            self.data.pairs("train", config.seed, noise),
            self.data.pairs("val", config.seed, noise),
            self.live(),
            config.batch_size,
            config.pairs_per_instance,
            config.weight_decay,
            config.contrastive_weight,
            config.seed,
            config.output_path / "checkpoints",
            verbose,
        )
        results, self.cache = train(self.model, stages, training, self.cache)
        self.results += results

    def live(self) -> LiveTokens:
        """Tokens by running the encoders."""
        return LiveTokens(self.model.encoders, self.data.observations, self.device)

    def test(self, noisy: bool) -> Evaluation:
        """Predictions for the test split."""
        noise = self.config.noise_of() if noisy else None
        pairs = self.data.pairs("test", self.config.seed, noise).every()
        source: TokenSource = self.cache or self.live()
        return evaluate(self.model, pairs, source)

    def summary(self) -> dict[str, Any]:
        """Numbers for a JSON file."""
        tests = {"clean": summarise(self.test(False), self.config.precision)}
        if self.config.noise != "none":
            tests["noisy"] = summarise(self.test(True), self.config.precision)
        return {
            "test": tests,
            "stages": [{**asdict(r), "best_epoch": r.best_epoch} for r in self.results],
        }


def summarise(evaluation: Evaluation, precision: float) -> dict[str, Any]:
    """Metrics, and the weight of the text for pairs with and without noise."""
    pairs = evaluation.pairs
    noisy = pairs.noisy_image | pairs.noisy_text
    summary: dict[str, Any] = {
        "pairs": len(pairs),
        "noisy_pairs": int(noisy.sum()),
        "accuracy": evaluation.accuracy(),
        "recall": evaluation.recall(precision),
        "text_weight": {
            task: {"right": describe(1 - w[~noisy]), "noise": describe(1 - w[noisy])}
            for task, w in evaluation.image_weight.items()
        },
    }
    if noisy.any() and not noisy.all():
        summary["accuracy_right"] = evaluation.accuracy(~noisy)
        summary["accuracy_noise"] = evaluation.accuracy(noisy)
    return summary


def describe(weights: Tensor) -> dict[str, Any] | None:
    """Mean and histogram over [0, 1] of some weights (B,)."""
    if len(weights) == 0:
        return None
    counts, _ = np.histogram(weights.numpy(), WEIGHT_BINS, (0.0, 1.0))
    return {"mean": float(weights.mean()), "histogram": counts.tolist()}
