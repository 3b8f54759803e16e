"""Every option of a run, and what it may be."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import OptionError
from ..options import (
    Count,
    Fraction,
    OptionGroup,
    Pixels,
    PositiveCount,
    Processes,
    Range,
    Seed,
    Width,
    option,
)

# These options change where or how often things are written, or how fast, never the numbers. A
# checkpoint may be resumed under other values of these, and of no other option.
NEUTRAL_OPTIONS = frozenset({"output_dir", "resume", "checkpoint_every", "num_workers"})
# The encoders' logit scale is 100 at most, as in CLIP: a smaller temperature would not be met.
Temperature = Annotated[float, Range(0.01, 100, "lie in [0.01, 100]")]
Rounds = Annotated[int, Range(0, 1 << 24)]  # as many as the loss takes


@dataclass
class Config(OptionGroup):
    """Options of one fine-tuning run.

    Adam's betas, epsilon and weight decay, the cosine schedule, the temperature, the number of
    epochs and the seed are those of the MXM-CLR paper's Tables 6 to 9, and a batch of 70
    instances is their (420, 350). The learning rates are not: the paper starts from CLIP, whose
    towers agree already, while the packaged encoders have never seen each other and their fresh
    projections start from noise. They are the best of those tried on the validation split of the
    emoji set, for both losses (examples/studies/compare/results/emoji_tuning.md). `--preset` takes
    the tables' own values (presets.py).
    """

    data: Literal["emoji", "flickr30k", "coco"] = option("emoji", "data set")
    data_root: str = option("", "folder of Flickr30K or COCO (see examples/data/captions.py)")
    output_dir: str = option("runs/emoji", "folder of checkpoints, metrics and the figure")

    model: str = option(
        "packaged", "'packaged' (MiniLM and EfficientNet-Lite0) or an open_clip model"
    )
    pretrained: str = option("", "open_clip weights: a tag of that model or a file; empty: random")
    unfreeze: Literal["top", "all", "heads"] = option(
        "top", "what is trained: the last layers and projections, everything, or projections"
    )
    image_size: Pixels = option(112, "side of the packaged image encoder's input in pixels")
    embed_dim: Width = option(256, "width of the packaged encoders' shared space")

    loss: Literal["mfh", "clip"] = option("mfh", "MFH, or CLIP on one random pair per instance")
    hard_weight: Fraction = option(0.6, "MFH: weight of the hard relationships")
    rounds: Rounds = option(10, "MFH: rounds of random pair selection; 0 takes their expectation")
    teacher_decay: Fraction = option(0.99, "MFH: decay of the teacher's moving average per step")
    temperature: Temperature = option(0.03, "temperature at the start")
    learn_temperature: bool = option(True, "false keeps the temperature where it starts")

    epochs: PositiveCount = option(10, "passes over the training instances")
    batch_size: PositiveCount = option(70, "instances per optimiser step, over all processes")
    micro_batch: Count = option(
        0, "most images or captions that an encoder sees at once, by gradient caching; 0: all"
    )
    lr: Fraction = option(1e-4, "rate of pretrained layers (the paper, from CLIP: 1e-5 or 1e-6)")
    head_lr: Fraction = option(1e-3, "learning rate of fresh projections and the temperature")
    weight_decay: Fraction = option(0.01, "weight decay of Adam")

    augment: Literal["none", "paper"] = option(
        "none", "what is done to training images: nothing, or the paper's crops, flips, rotations"
    )

    seed: Seed = option(2022, "seed of the initial projections, the batches and every draw")
    split_seed: Seed = option(0, "seed of the split into train, validation and test instances")
    eval_split: Literal["val", "test"] = option("test", "split that the metrics are computed on")
    aggregate: Literal["none", "images", "texts", "both"] = option(
        "none", "sides with one feature for an instance in retrieval: the mean of its features"
    )
    limit: Count = option(0, "keep at most this many instances of each split; 0: all")
    max_steps: Count = option(0, "stop after this many optimiser steps; 0: all epochs")

    checkpoint_every: PositiveCount = option(25, "steps between checkpoints")
    resume: bool = option(True, "go on from the newest checkpoint in output_dir, if there is one")
    precision: Literal["no", "bf16", "fp16"] = option("no", "mixed precision of Accelerate")
    cpu: bool = option(False, "stay on the CPU even where there is an accelerator")
    num_workers: Processes = option(0, "worker processes that load images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output_dir:
            raise OptionError("--output_dir must name a folder, not ''")
        if self.data == "emoji" and self.data_root:
            raise OptionError("--data_root: the emoji come from packages, not from a folder")
        if self.data != "emoji" and not Path(self.data_root or " ").is_dir():
            missing = f"{self.data_root} is not a folder" if self.data_root else "name it"
            raise OptionError(f"--data_root: {missing}; --data {self.data} is read from there")
        if self.model == "packaged" and self.pretrained:
            raise OptionError("--pretrained goes with an open_clip --model")
        if self.augment != "none" and self.keeps_outputs:
            raise OptionError(
                f"--augment {self.augment} needs images that go through every layer in each epoch. "
                f"--model {self.model} --unfreeze {self.unfreeze} computes the outputs of its "
                "frozen layers once, and keeps them. Use --unfreeze all, or --unfreeze top with an "
                "open_clip --model"
            )

    @property
    def output_path(self) -> Path:
        """Output folder."""
        return Path(self.output_dir)

    @property
    def keeps_outputs(self) -> bool:
        """Whether frozen layers run once for each image, and never again."""
        return self.unfreeze == "heads" or (self.model == "packaged" and self.unfreeze == "top")

    def numeric_options(self) -> dict[str, Any]:
        """Options that the numbers of a run depend on."""
        return {k: v for k, v in asdict(self).items() if k not in NEUTRAL_OPTIONS}
