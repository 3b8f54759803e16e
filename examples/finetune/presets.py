"""The hyper-parameters of the MXM-CLR paper's Tables 6 to 9, as values of the options.

A preset is one column of one table: a task and an image encoder. Its name is both, such as
`flickr30k-vit-b-32`. Not from these tables are three things. That CLIP's own weights are the start
and that everything is trained, is said in the paper's section 4.2. `head_lr` is the tables' one
learning rate too; where an open_clip model is trained as a whole, it is the temperature's alone.
And open_clip has CLIP's weights under the names with "quickgelu", the activation that they were
trained with.

The tables' batch is (images, texts). `batch_size` is the number of instances that have as many:
(420, 350) are 70 instances of 6 views and 5 captions. How many views and captions an instance has
is the data set's, so no option says it. Optimiser and scheduler are the same in every table, and
train.py's. This example has no loader of Text2Shape: those presets are for such data under
`--data`.
"""

from typing import Any, NamedTuple

ENCODERS = ("RN101", "ViT-B-32", "ViT-B-16")  # the columns of each table
LEARNING_RATES = (1e-5, 1e-6, 1e-6)  # the row "Learning rate" of each table
SAME = {  # the rows that are the same in each table and column, and section 4.2's
    "temperature": 0.03,
    "epochs": 10,
    "seed": 2022,
    "pretrained": "openai",
    "unfreeze": "all",
}


class Table(NamedTuple):
    """One table: what its task is, and the rows that differ between the tables."""

    number: int
    task: str
    views: int
    captions: int
    batch: tuple[int, int]  # images, texts
    weight_decay: tuple[float, float, float]  # of each encoder
    options: dict[str, str]  # what the task is, in options

    @property
    def instances(self) -> int:
        """Instances in a batch."""
        return self.batch[0] // self.views


TABLES = (
    Table(6, "text2shape", 6, 5, (420, 350), (0.01, 0.04, 0.04), {}),
    Table(7, "text2shape-agg-image", 6, 5, (420, 350), (0.01, 0.04, 0.04), {"aggregate": "images"}),
    Table(8, "text2shape-agg-text", 6, 5, (240, 200), (0.01, 0.04, 0.04), {"aggregate": "texts"}),
    Table(9, "flickr30k", 1, 5, (80, 400), (0.01, 0.01, 0.01), {"data": "flickr30k"}),
)


def options_of(table: Table, column: int) -> dict[str, Any]:
    """Values of the options in one column of a table."""
    rate = LEARNING_RATES[column]
    return {
        **SAME,
        **table.options,
        "model": f"{ENCODERS[column]}-quickgelu",
        "batch_size": table.instances,
        "lr": rate,
        "head_lr": rate,
        "weight_decay": table.weight_decay[column],
    }


PRESETS = {
    f"{table.task}-{encoder.lower()}": options_of(table, column)
    for table in TABLES
    for column, encoder in enumerate(ENCODERS)
}
