"""Train a text encoder and an image head with one loss, and look up images in other languages."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from examples.finetune.train import make_teacher
from mxm_kernels import Folds

from .features import BUCKETS, StampSet
from .rows import TEACHER_DECAY, Row, loss_of

WIDTH = 96
WITHIN = (1, 5, 10)


@dataclass(frozen=True)
class Batch:
    """Rows of some instances: M images, and N captions by their n-grams."""

    images: Tensor  # (M, components)
    grams: Tensor  # (G,) int64
    offsets: Tensor  # (N,) int64, where the n-grams of a caption begin
    folds: Folds


class Encoder(nn.Module):
    """Captions as the mean of their n-grams' vectors, images by a linear map; the temperature."""

    def __init__(self, components: int, temperature: float) -> None:
        super().__init__()
        self.texts = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.images = nn.Linear(components, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode_texts(self, grams: Tensor, offsets: Tensor) -> Tensor:
        """Normalised features (N, WIDTH)."""
        return normalize(self.texts(grams, offsets), dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Normalised features (M, WIDTH)."""
        return normalize(self.images(images), dim=-1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised features of the images and of the captions."""
        return self.encode_images(batch.images), self.encode_texts(batch.grams, batch.offsets)


def bags(data: StampSet, captions: Tensor) -> tuple[Tensor, Tensor]:
    """The n-grams of some captions, one caption after the other, and where each begins."""
    sizes = data.offsets[captions + 1] - data.offsets[captions]
    begins = sizes.cumsum(0) - sizes
    places = torch.arange(int(sizes.sum())) + (data.offsets[captions] - begins).repeat_interleave(
        sizes
    )
    return data.grams[places], begins


def captions_in(data: StampSet, languages: Sequence[str]) -> Tensor:
    """Captions in some languages, ordered by stamp."""
    places = torch.tensor([data.languages.index(language) for language in languages])
    return torch.isin(data.spoken, places).nonzero()[:, 0]


class Batches:
    """Batches of stamps that have captions in the languages, stamp after stamp in random order.

    Args:
        data: all stamps.
        languages: whose captions are trained on.
        one_pair: whether a batch has one image and one caption of each stamp, drawn at random,
            instead of all.
        generator: of the order and the draws.

    """

    def __init__(
        self,
        data: StampSet,
        languages: Sequence[str],
        one_pair: bool,
        generator: torch.Generator,
    ) -> None:
        self.data, self.one_pair, self.generator = data, one_pair, generator
        self.captions = captions_in(data, languages)
        self.counts = data.stamps[self.captions].bincount(minlength=len(data.images))
        self.begins = self.counts.cumsum(0) - self.counts
        self.stamps = self.counts.nonzero()[:, 0]

    def take(self, size: int, steps: int) -> Iterator[Batch]:
        """As many batches as there are steps; the rest of an epoch that fills none is left."""
        size = min(size, len(self.stamps))
        queue = self.stamps[:0]
        for _ in range(steps):
            if len(queue) < size:
                order = torch.randperm(len(self.stamps), generator=self.generator)
                queue = self.stamps[order]
            chosen, queue = queue[:size], queue[size:]
            yield self.pairs(chosen) if self.one_pair else self.whole(chosen)

    def pairs(self, chosen: Tensor) -> Batch:
        """One image and one caption of each stamp."""
        draw = torch.rand(2, len(chosen), generator=self.generator)
        side = (draw[0] * self.data.images.shape[1]).long()
        caption = self.begins[chosen] + (draw[1] * self.counts[chosen]).long()
        images = self.data.images[chosen, side]
        return Batch(images, *bags(self.data, self.captions[caption]), Folds.uniform(1, 1))

    def whole(self, chosen: Tensor) -> Batch:
        """Both images and every caption of each stamp."""
        counts = self.counts[chosen]
        shift = (self.begins[chosen] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        captions = self.captions[torch.arange(int(counts.sum())) + shift]
        views = self.data.images.shape[1]
        images = self.data.images[chosen].flatten(0, 1)
        own = torch.arange(len(chosen))
        folds = Folds.from_ids(own.repeat_interleave(views), own.repeat_interleave(counts))
        return Batch(images, *bags(self.data, captions), folds)


@dataclass(frozen=True)
class Schedule:
    """How much a run computes: stamps in a batch, and batches."""

    stamps: int
    steps: int


def train(
    row: Row,
    data: StampSet,
    languages: Sequence[str],
    schedule: Schedule,
    lr: float,
    temperature: float,
    seed: int,
) -> tuple[Encoder, float]:
    """Train on the captions in some languages.

    Returns the encoder, and the processor seconds of the training loop: runs share a machine.
    """
    torch.manual_seed(seed)
    student = Encoder(data.images.shape[-1], temperature)
    teacher = make_teacher(student, TEACHER_DECAY) if row.has_teacher else None
    optimizer = torch.optim.Adam(student.parameters(), lr=lr, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=schedule.steps)
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(data, languages, row.one_pair, generator)
    start = time.process_time()
    for batch in batches.take(schedule.stamps, schedule.steps):
        targets = None
        if teacher is not None:
            with torch.no_grad():
                targets = teacher(batch)
        loss = loss_of(row, student(batch), targets, batch.folds, student.logit_scale, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        if teacher is not None:
            teacher.update_parameters(student)
    return student.eval(), time.process_time() - start


@torch.no_grad()
def evaluate(encoder: Encoder, data: StampSet, languages: Sequence[str]) -> dict[str, float]:
    """Recall of the image for captions in some languages, in percent, by name.

    The gallery has the image of every stamp, without the mirror images. "average recall" is the
    mean over the languages of R@1, R@5 and R@10; each language has its own mean by its name.
    """
    captions = captions_in(data, languages)
    texts = encoder.encode_texts(*bags(data, captions))
    similarity = texts @ encoder.encode_images(data.images[:, 0]).T
    own = similarity.gather(1, data.stamps[captions][:, None])
    ahead = (similarity > own).sum(1)
    found = 100 * torch.stack([(ahead < k).float() for k in WITHIN])
    spoken = data.spoken[captions]
    values = {name: found[:, spoken == data.languages.index(name)].mean(1) for name in languages}
    mean = torch.stack(list(values.values())).mean(0)
    recalls = {f"R@{k}": value for k, value in zip(WITHIN, mean.tolist(), strict=True)}
    each = {name: float(value.mean()) for name, value in values.items()}
    return {"average recall": float(mean.mean()), **recalls, **each}
