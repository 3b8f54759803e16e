"""The three training stages of section 4.2.2 and Algorithm 1 of arXiv 2112.03562.

A stage is a learning rate for each part of the model; a rate of 0 freezes the part. After every
epoch the model is validated, and a stage hands over the parameters of its best epoch.

Where the paper contradicts itself: its best checkpoint has the "lowest validation accuracy", which
is taken for the highest; Algorithm 1 gives the cross-modality attention a rate of 0 in the tuning
stage, while the text trains the modality-wise attention there, which is what is done here.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.files import changed, digest_of, write_whole
from mxm_kernels import fused_mfh_loss

from .config import PAPER_EPOCHS, PAPER_LR
from .data import Pairs, PairSplit
from .evaluate import evaluate
from .model import PARTS, CMAClip
from .sources import CachedTokens, LiveTokens, TokenSource


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Args:
        name: also that of its checkpoint.
        epochs: passes over the training instances; 0 skips the stage.
        lr: learning rate of each of the model's parts; 0 freezes it.

    """

    name: str
    epochs: int
    lr: dict[str, float]

    def __post_init__(self) -> None:
        if set(self.lr) != set(PARTS):
            raise ValueError(f"lr must have a rate for each of {PARTS}, got {sorted(self.lr)}")
        if min(self.lr.values()) < 0 or not any(self.lr.values()):
            raise ValueError(f"lr must be 0 or more, and not all 0, got {self.lr}")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts that learn."""
        return tuple(part for part in PARTS if self.lr[part] > 0)


def three_stages(
    epochs: Sequence[int] = PAPER_EPOCHS, lr: float = PAPER_LR, encoder_lr: float | None = None
) -> list[Stage]:
    """Warm-up, end-to-end and tuning stage; the defaults are the paper's for three tasks.

    Args:
        epochs: of the three stages.
        lr: rate of what a stage trains.
        encoder_lr: rate of the encoders in the end-to-end stage; None for `lr`.

    """
    if len(epochs) != 3:
        raise ValueError(f"epochs must have one number for each of the 3 stages, got {epochs}")
    rate = lr if encoder_lr is None else encoder_lr
    new = {"sequence": lr, "modality": lr, "heads": lr}
    return [
        Stage("warm_up", epochs[0], {"encoders": 0.0, **new}),
        Stage("end_to_end", epochs[1], {"encoders": rate, **new}),
        Stage("tuning", epochs[2], {"encoders": 0.0, **new, "sequence": 0.0}),
    ]


@dataclass
class Training:
    """What the stages of a run have in common.

    Args:
        train: training pairs.
        validation: pairs that choose the best epoch.
        source: tokens of the data set's images and texts.
        instances_per_batch: in a batch.
        pairs_per_instance: random pairs of each, with their own image and caption.
        weight_decay: of Adam.
        contrastive_weight: of the multifold contrastive loss, where the encoders learn.
        seed: of batches and dropout.
        folder: for checkpoints.
        verbose: print a line after every epoch.

    """

    train: PairSplit
    validation: PairSplit
    source: LiveTokens
    instances_per_batch: int
    pairs_per_instance: int
    weight_decay: float
    contrastive_weight: float
    seed: int
    folder: Path
    verbose: bool = False


@dataclass
class StageResult:
    """Mean validation accuracy after every epoch, the first one before training, and losses."""

    name: str
    validation: list[float]
    losses: list[float]

    @property
    def best_epoch(self) -> int:
        """Epoch whose parameters are handed over; 0 is the start of the stage."""
        return max(range(len(self.validation)), key=self.validation.__getitem__)


def train(
    model: CMAClip,
    stages: Sequence[Stage],
    training: Training,
    cache: CachedTokens | None = None,
) -> tuple[list[StageResult], CachedTokens | None]:
    """Run the stages one after the other.

    Args:
        model: ends with the best parameters of the last stage.
        stages: those of no epochs are skipped.
        training: data and options.
        cache: tokens of the encoders as they are, if they have been computed already.

    Returns:
        A result of each stage, and the tokens of the final encoders, if they are cached.

    """
    results = []
    for stage in stages:
        if stage.epochs == 0:
            continue
        if "encoders" in stage.trained:
            cache = None
            results.append(run_stage(model, stage, training, training.source))
        else:
            cache = cache or training.source.cache()
            results.append(run_stage(model, stage, training, cache))
    return results, cache


def run_stage(model: CMAClip, stage: Stage, training: Training, source: TokenSource) -> StageResult:
    """Train one stage, and leave the model with the parameters of its best epoch."""
    freeze(model, stage)
    checkpoint = Checkpoint(model, stage, training.folder)
    # Every stage has its own batches; those before it do not matter to it.
    seed = 1000 * training.seed + zlib.crc32(stage.name.encode()) % 1000
    groups = [
        {"params": parameters, "lr": stage.lr[part]}
        for part in stage.trained
        if (parameters := trainable(getattr(model, part)))
    ]
    optimizer = torch.optim.Adam(groups, weight_decay=training.weight_decay)
    result = StageResult(stage.name, [score(model, training.validation, source)], [])
    checkpoint.save()
    for epoch in range(stage.epochs):
        torch.manual_seed(seed + epoch)  # of dropout
        set_mode(model, stage)
        batches = training.train.batches(
            training.instances_per_batch,
            training.pairs_per_instance,
            seed,
            epoch,
        )
        for pairs in batches:
            loss = batch_loss(model, pairs, source, stage, training)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.losses.append(loss.item())
        result.validation.append(score(model, training.validation, source))
        if training.verbose:
            print(epoch_line(result, stage.epochs), flush=True)
        if result.best_epoch == epoch + 1:
            checkpoint.save()
    checkpoint.load()
    return result


def epoch_line(result: StageResult, epochs: int) -> str:
    """Say how the epoch went that has just ended."""
    done = len(result.validation) - 1
    batches = len(result.losses) // done
    loss = sum(result.losses[-batches:]) / batches
    return (
        f"{result.name}, epoch {done} of {epochs}: mean loss {loss:.3f}, "
        f"validation accuracy {result.validation[-1]:.1f}"
    )


def batch_loss(
    model: CMAClip, pairs: Pairs, source: TokenSource, stage: Stage, training: Training
) -> Tensor:
    """Sum of the tasks' cross-entropies, and of the contrastive loss where the encoders learn.

    Loss = sum_k CE_k + contrastive_weight * MFH. The paper leaves the contrastive loss to future
    work. Multifold it takes every image and caption of an instance in the batch for a positive.
    """
    image, text = source.tokens(pairs.images, pairs.texts)
    prediction = model(image, text)
    loss = torch.stack(
        [
            cross_entropy(logits, pairs.labels[task].to(logits.device))
            for task, logits in prediction.logits.items()
        ]
    ).sum()
    if training.contrastive_weight and "encoders" in stage.trained:
        contrastive = fused_mfh_loss(
            image.features,
            text.features,
            pairs.folds.to(image.features.device),
            logit_scale=model.encoders.logit_scale,
            rounds=None,
        )
        loss = loss + training.contrastive_weight * contrastive
    return loss


def score(model: CMAClip, split: PairSplit, source: TokenSource) -> float:
    """Mean accuracy over the tasks, in percent."""
    metrics = evaluate(model, split.every(), source).accuracy()
    return sum(metrics.values()) / len(metrics)


def freeze(model: CMAClip, stage: Stage) -> None:
    """Let the stage's parts learn."""
    model.encoders.release("encoders" in stage.trained)
    for part in PARTS[1:]:
        getattr(model, part).requires_grad_(part in stage.trained)


def set_mode(model: CMAClip, stage: Stage) -> None:
    """Training mode for the parts that learn, evaluation mode for the rest."""
    for part in PARTS:
        getattr(model, part).train(part in stage.trained)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that the optimiser gets."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Checkpoint:
    """The best parameters of a stage: those of the parts that it trains, as safetensors."""

    def __init__(self, model: CMAClip, stage: Stage, folder: Path) -> None:
        self.model, self.stage = model, stage
        self.path, self.digest = folder / f"{stage.name}.safetensors", ""
        folder.mkdir(parents=True, exist_ok=True)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the trained parts."""
        prefixes = tuple(f"{part}." for part in self.stage.trained)
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(prefixes)}

    def save(self) -> None:
        """Write the parameters."""
        state = {k: v.contiguous() for k, v in self.state().items()}
        write_whole(self.path, lambda path: save_file(state, path))
        self.digest = digest_of(self.path)

    def load(self) -> None:
        """Read them back."""
        if self.digest and digest_of(self.path) != self.digest:
            raise changed(self.path)
        stored = load_file(self.path)
        expected = self.state().keys()
        if stored.keys() != expected:
            odd = sorted(stored.keys() ^ expected)
            raise ValueError(f"{self.path} is not of this model: {odd[:3]} differ")
        self.model.load_state_dict(stored, strict=False)
