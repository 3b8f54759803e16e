"""What the study trains, and which differences it was begun for: data, no computation."""

from dataclasses import dataclass
from typing import Literal

CONDITIONS: dict[str, str] = {
    "clean": "Captions and images as they are.",
    "text noise": "{rate:g} % of the captions are another emoji's, in training, validation and "
    "test.",
    "image noise": "{rate:g} % of the images are another emoji's, in training, validation and "
    "test.",
    "names put in": "{share:g} % of the captions that lack their class names have these put in, in "
    "training, validation and test. More tests of these models are below.",
}
NAMED_SHARE = 0.5


@dataclass(frozen=True)
class Row:
    """A kind of model.

    Args:
        looks_at: what it classifies: both modalities, one, or the image beside prompts.
        sequence: sequence-wise attention (SA).
        modality: modality-wise attention (MA).
        trained: False takes the aligned encoders as they are.

    """

    looks_at: Literal["both", "image", "text", "prompts"] = "both"
    sequence: bool = False
    modality: bool = False
    trained: bool = True


ROWS = {
    "CMA-CLIP": Row(sequence=True, modality=True),
    "w/o MA": Row(sequence=True),
    "w/o SA": Row(modality=True),
    "w/o (MA + SA)": Row(),
    "image only": Row("image"),
    "text only": Row("text"),
    "prompts": Row("prompts", trained=False),
    "prompts, trained": Row("prompts"),
}
TRAINED = tuple(name for name, row in ROWS.items() if row.trained)
FUSED = tuple(name for name, row in ROWS.items() if row.looks_at == "both")
CELLS: tuple[tuple[str, str], ...] = (
    *(("clean", name) for name in ROWS),
    *(("text noise", name) for name in (*FUSED, "text only")),
    *(("image noise", name) for name in (*FUSED, "image only")),
    *(("names put in", name) for name in FUSED),
)


@dataclass(frozen=True)
class Difference:
    """First minus second in average accuracy on one set of test pairs."""

    condition: str
    first: str
    second: str
    test: str = "all"


# Fixed before the first test run, with the reading rule in reading.md.
PRIMARY = (
    Difference("clean", "CMA-CLIP", "image only"),
    Difference("clean", "CMA-CLIP", "text only"),
    Difference("clean", "CMA-CLIP", "prompts, trained"),
    Difference("text noise", "CMA-CLIP", "w/o MA"),
    Difference("text noise", "CMA-CLIP", "w/o (MA + SA)"),
    Difference("image noise", "CMA-CLIP", "w/o MA"),
    Difference("image noise", "CMA-CLIP", "w/o (MA + SA)"),
    Difference("names put in", "CMA-CLIP", "w/o MA", "own"),
)
