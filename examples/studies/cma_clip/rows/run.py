"""One run: a model of a row, trained under a condition on one split from one seed, and tested."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.studies.cma_clip.config import StudyConfig
from examples.studies.cma_clip.data import Pairs, PairSplit
from examples.studies.cma_clip.evaluate import evaluate
from examples.studies.cma_clip.model import CMAClip
from examples.studies.cma_clip.noise import Noise
from examples.studies.cma_clip.prepare import DataSet
from examples.studies.cma_clip.sources import CachedTokens, LiveTokens
from examples.studies.cma_clip.stages import Stage, StageResult, Training, run_stage

from .measure import Thresholds, changed, counts, text_weights
from .models import build, prompt_features
from .plan import NAMED_SHARE, ROWS
from .texts import Texts


@dataclass
class Material:
    """What all runs of a split share: data, more texts, aligned encoders and their tokens."""

    config: StudyConfig
    data: DataSet
    texts: Texts
    dual: Any
    tokens: CachedTokens

    def seed(self, number: int) -> int:
        """Seed of a run: of its initial weights, batches and noise."""
        return 10 * self.config.seed + number

    def split(self, name: str, condition: str, number: int) -> PairSplit:
        """Pairs of a split under a condition."""
        config, seed = self.config, self.seed(number)
        noise = None
        if condition == "text noise":
            noise = Noise("text", config.noise_rate, seed)
        elif condition == "image noise":
            noise = Noise("image", config.noise_rate, seed)
        pairs = self.data.pairs(name, config.seed, noise)
        if condition == "names put in":
            return self.texts.put_in_some(pairs, NAMED_SHARE, seed)
        return pairs

    def model(self, row: str, number: int) -> CMAClip:
        """Model of a row before training."""
        config = replace(self.config, seed=self.seed(number))
        prompts = prompt_features(self.tokens.texts.features, self.texts.prompts)
        return build(ROWS[row], config, self.dual, self.data.labels.counts, prompts)


def fit(
    material: Material, condition: str, row: str, number: int, rate: float, folder: Path
) -> tuple[CMAClip, StageResult, float]:
    """Train a model on frozen encoders: the model, its validation, and processor seconds."""
    config, model = material.config, material.model(row, number)
    epochs = config.stage_epochs[0] if ROWS[row].trained else 0
    rates = {"encoders": 0.0, "sequence": rate, "modality": rate, "heads": rate}
    training = Training(
        material.split("train", condition, number),
        material.split("val", condition, number),
        LiveTokens(model.encoders, material.texts.observations),
        config.batch_size,
        config.pairs_per_instance,
        config.weight_decay,
        0.0,
        material.seed(number),
        folder,
    )
    start = time.process_time()
    result = run_stage(model, Stage("warm_up", epochs, rates), training, material.tokens)
    return model, result, time.process_time() - start


def run(
    material: Material, condition: str, row: str, number: int, rate: float, folder: Path
) -> dict[str, Any]:
    """Train and test: numbers for a JSON file."""
    model, result, seconds = fit(material, condition, row, number, rate, folder)
    validation = evaluate(model, material.split("val", condition, number).every(), material.tokens)
    thresholds = Thresholds.choose(validation, material.config.precision)
    tests, weights = {}, {}
    for name, (pairs, chosen) in test_pairs(material, condition, number).items():
        evaluation = evaluate(model, pairs, material.tokens)
        tests[name] = counts(evaluation, thresholds, chosen)
        if ROWS[row].modality:
            weights[name] = text_weights(evaluation, chosen)
    return {
        "rate": rate,
        "seconds": seconds,
        "epochs": len(result.validation) - 1,
        "best_epoch": result.best_epoch,
        "validation": max(result.validation),
        "tests": tests,
        "text_weights": weights,
    }


def test_pairs(material: Material, condition: str, number: int) -> dict[str, tuple[Pairs, Tensor]]:
    """Test pairs by the name of the test, each with a mask (B,) of those that count.

    "all" is the condition's own test split. With noise, "right" and "noise" are its pairs without
    and with it. Else "own", "right name" and "wrong name" are the pairs whose caption lacks its
    class names, as it is and with names put in.
    """
    pairs = material.split("test", condition, number).every()
    everything = torch.ones(len(pairs), dtype=torch.bool)
    found = {"all": (pairs, everything)}
    if condition in ("text noise", "image noise"):
        noisy = changed(pairs)
        return {**found, "right": (pairs, ~noisy), "noise": (pairs, noisy)}
    texts = material.texts
    right, wrong = (
        texts.put_in(material.split("test", "clean", number), kind).every()
        for kind in ("right", "wrong")
    )
    lacks = changed(right)
    own = material.split("test", "clean", number).every()
    named = {"own": own, "right name": right, "wrong name": wrong}
    return {**found, **{name: (rows, lacks) for name, rows in named.items()}}
