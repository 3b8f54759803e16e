"""Train two linear heads on frozen features with the loss of one row, and measure retrieval."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from examples.finetune.train import make_teacher
from mxm_kernels.data import (
    MultifoldBatch,
    MultifoldBatchSampler,
    MultifoldDataset,
    collate_multifold,
)
from mxm_kernels.retrieval import retrieval_metrics

from .features import FeatureSet
from .rows import Row, aggregated, loss_of


@dataclass(frozen=True)
class Hyperparameters:
    """What is tuned; the last two are read by rows with a teacher alone."""

    lr: float
    temperature: float
    soft_weight: float
    teacher_decay: float


@dataclass(frozen=True)
class Schedule:
    """How much a run computes: instances in a batch, and batches."""

    batch_size: int
    steps: int


class Heads(nn.Module):
    """A linear map of each side into one space, and the temperature."""

    def __init__(self, image_width: int, text_width: int, width: int, temperature: float) -> None:
        super().__init__()
        self.image_head = nn.Linear(image_width, width, bias=False)
        self.text_head = nn.Linear(text_width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100.0)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features (M, width) and (N, width)."""
        return normalize(self.image_head(images), dim=-1), normalize(self.text_head(texts), dim=-1)


def train(
    row: Row,
    data: FeatureSet,
    schedule: Schedule,
    hyperparameters: Hyperparameters,
    seed: int,
    width: int = 256,
) -> tuple[Heads, float]:
    """Train the heads; returns them and the processor seconds of the training loop.

    Processor time, because runs share a machine with each other.
    """
    torch.manual_seed(seed)
    h = hyperparameters
    student = Heads(data.images.shape[1], data.texts.shape[1], width, h.temperature)
    teacher = make_teacher(student, h.teacher_decay) if row.has_teacher else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=h.lr, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=schedule.steps)
    generator = torch.Generator().manual_seed(seed)
    rounds = round(len(data.texts) / data.instances) if row.rounds == "m" else row.rounds
    start = time.process_time()
    for batch in batches(row, data, schedule, seed):
        targets = None
        if teacher is not None:
            with torch.no_grad():
                targets = teacher(batch.images, batch.texts)
        features, scale = student(batch.images, batch.texts), student.logit_scale
        loss = loss_of(row, batch, features, targets, scale, h.soft_weight, rounds, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        if teacher is not None:
            teacher.update_parameters(student)
    return student.eval(), time.process_time() - start


def batches(row: Row, data: FeatureSet, schedule: Schedule, seed: int) -> Iterator[MultifoldBatch]:
    """The batches of all steps: every observation of their instances, or one random pair each."""
    drawn = 1 if row.pairs else None
    dataset = MultifoldDataset(
        range(len(data.images)),  # rows, which the collate function looks up all at once
        range(len(data.texts)),
        data.image_ids,
        data.text_ids,
        views=drawn,
        captions=drawn,
    )
    sampler = MultifoldBatchSampler(len(dataset), schedule.batch_size, seed=seed)
    collate = partial(
        collate_multifold,
        collate_images=partial(look_up, data.images),
        collate_texts=partial(look_up, data.texts),
    )
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
    for step in range(0, schedule.steps, len(sampler)):
        sampler.set_epoch(step // len(sampler))
        for _, batch in zip(range(schedule.steps - step), loader, strict=False):
            yield batch


def look_up(features: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a matrix."""
    return features[torch.tensor(rows)]


@torch.no_grad()
def evaluate(row: Row, heads: Heads, data: FeatureSet) -> dict[str, float]:
    """Retrieval metrics in percent (median ranks as they are), by name."""
    images, texts = heads(data.images, data.texts)
    *features, image_ids, text_ids = aggregated(row, images, texts, data.image_ids, data.text_ids)
    found = retrieval_metrics(features[0], features[1], (image_ids, text_ids))
    values: dict[str, float] = {}
    for direction in ("text_to_image", "image_to_text"):
        metrics = getattr(found, direction)
        for k, recall in metrics.recall.items():
            values[f"{direction} R@{k}"] = 100 * recall
        values[f"{direction} NDCG"] = 100 * metrics.ndcg
        values[f"{direction} median rank"] = metrics.median_rank
    recalls = [value for name, value in values.items() if "R@" in name]
    return {**values, "average recall": sum(recalls) / len(recalls)}
