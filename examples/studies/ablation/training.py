"""Train two linear heads on frozen features with the loss of one row, and measure retrieval."""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from examples.data.multifold import aggregated
from examples.finetune.train import make_teacher
from examples.studies.protocol.runs import PRIMARY, Point
from mxm_kernels.data import (
    InstanceKey,
    MultifoldBatch,
    MultifoldBatchSampler,
    MultifoldDataset,
    collate_multifold,
)
from mxm_kernels.retrieval import retrieval_metrics

from .features import FeatureSet
from .rows import Row, Step, loss_of
from .settings import Setting


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
    setting: Setting, data: FeatureSet, point: Point, seed: int, width: int
) -> tuple[Heads, float]:
    """Train the heads; returns them and the processor seconds of the training loop.

    Processor time, because runs share a machine with each other.
    """
    torch.manual_seed(seed)
    row = setting.row
    student = Heads(data.images.shape[1], data.texts.shape[1], width, point.temperature)
    teacher = make_teacher(student, setting.teacher_decay) if row.has_teacher else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=point.lr, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=setting.steps)
    generator = torch.Generator().manual_seed(seed)
    rounds = round(len(data.texts) / data.instances) if row.rounds == "m" else row.rounds
    start = time.process_time()
    for place, batch in enumerate(batches(setting, data, seed)):
        targets = None
        if teacher is not None:
            with torch.no_grad():
                targets = teacher(batch.images, batch.texts)
        progress, scale = place / setting.steps, student.logit_scale
        step = Step(scale, setting.soft_weight, rounds, progress, generator)
        loss = loss_of(row, batch, student(batch.images, batch.texts), targets, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        if teacher is not None:
            teacher.update_parameters(student)
    return student.eval(), time.process_time() - start


def row_numbers(setting: Setting, data: FeatureSet) -> MultifoldDataset:
    """The instances with the numbers of their images and captions for what they show."""
    return MultifoldDataset(
        range(len(data.images)),  # rows, which the collate function looks up all at once
        range(len(data.texts)),
        data.image_ids,
        data.text_ids,
        views=setting.views or None,
        captions=setting.captions or None,
    )


def drawn_once(setting: Setting, data: FeatureSet, seed: int) -> FeatureSet:
    """What is left of the data where the observations of an instance are drawn only once."""
    dataset = row_numbers(setting, data)
    items = [dataset[InstanceKey(place, 0, seed)] for place in range(len(dataset))]
    images = torch.tensor([row for item in items for row in item.images])
    texts = torch.tensor([row for item in items for row in item.texts])
    return FeatureSet(
        data.images[images], data.texts[texts], data.image_ids[images], data.text_ids[texts]
    )


def batches(setting: Setting, data: FeatureSet, seed: int) -> Iterator[MultifoldBatch]:
    """The batches of all steps, of all observations of their instances or of those drawn."""
    if setting.drawn == "once":
        data = drawn_once(setting, data, seed)
    dataset = row_numbers(setting, data)
    sampler = MultifoldBatchSampler(len(dataset), setting.batch_size, seed=seed)
    collate = partial(
        collate_multifold,
        collate_images=partial(look_up, data.images),
        collate_texts=partial(look_up, data.texts),
    )
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
    for step in range(0, setting.steps, len(sampler)):
        sampler.set_epoch(step // len(sampler))
        for _, batch in zip(range(setting.steps - step), loader, strict=False):
            yield batch


def look_up(features: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a matrix."""
    return features[torch.tensor(rows)]


@torch.no_grad()
def evaluate(row: Row, heads: Heads, data: FeatureSet) -> dict[str, float]:
    """Retrieval metrics in percent (median ranks as they are), by name."""
    images, texts = heads(data.images, data.texts)
    *features, image_ids, text_ids = aggregated(
        row.side, images, texts, data.image_ids, data.text_ids
    )
    found = retrieval_metrics(features[0], features[1], (image_ids, text_ids))
    values: dict[str, float] = {}
    for direction in ("text_to_image", "image_to_text"):
        metrics = getattr(found, direction)
        for k, recall in metrics.recall.items():
            values[f"{direction} R@{k}"] = 100 * recall
        values[f"{direction} NDCG"] = 100 * metrics.ndcg
        values[f"{direction} median rank"] = metrics.median_rank
    recalls = [value for name, value in values.items() if "R@" in name]
    return {**values, PRIMARY: sum(recalls) / len(recalls)}
