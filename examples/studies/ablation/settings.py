"""What a run of the ablation is given: a row, a schedule, and which observations it sees."""

from dataclasses import dataclass, replace
from typing import Literal

from .rows import Row

Drawn = Literal["once", "each step"]


@dataclass(frozen=True)
class Setting:
    """A row and all that is not tuned.

    Args:
        row: which loss, on what.
        batch_size: instances in a batch.
        steps: batches.
        soft_weight: 1 - hard_weight, of rows with a soft loss. The paper's hard_weight is 0.6.
        teacher_decay: of the momentum teacher, for each step.
        views: images of an instance that are drawn; 0 for all.
        captions: captions of an instance that are drawn; 0 for all.
        drawn: "once", before the training, or anew at "each step".

    """

    row: Row
    batch_size: int
    steps: int
    soft_weight: float = 0.4
    teacher_decay: float = 0.99
    views: int = 0
    captions: int = 0
    drawn: Drawn = "each step"


@dataclass(frozen=True)
class Size:
    """Numbers of a data set that schedules are made from.

    Args:
        instances: of the smallest training set.
        images: mean number of an instance.
        texts: mean number of an instance.

    """

    instances: int
    images: float
    texts: float

    def rows(self, setting: Setting) -> float:
        """Mean number of images and captions in a batch."""
        views = min(setting.views or self.images, self.images)
        captions = min(setting.captions or self.texts, self.texts)
        return setting.batch_size * (views + captions)


def base_setting(row: Row, size: Size, batch_size: int, epochs: int) -> Setting:
    """A row with the schedule that all have: some passes over the training instances."""
    return Setting(row, batch_size, epochs * (size.instances // batch_size))


def sized(setting: Setting, size: Size) -> Setting:
    """The schedule of a row: that of all, or as many pairs as others have images and captions."""
    row = setting.row
    if row.pairs:
        setting = replace(setting, views=1, captions=1)
    if row.pairs == "equal rows":
        pairs = round(setting.batch_size * (size.images + size.texts) / 2)
        return replace(setting, batch_size=min(pairs, size.instances))
    return setting
