"""Every option of a run, and the errors that end one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..options import OptionError, option

# These options change where or how often things are written, or how fast, never the numbers. A
# checkpoint may be resumed under other values of these, and of no other option.
NEUTRAL_OPTIONS = frozenset({"output_dir", "resume", "checkpoint_every", "num_workers"})


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it and says why."""


class InterruptedRunError(Exception):
    """The user stopped the run; its last step is in a checkpoint."""


@dataclass
class Config:
    """Options of one fine-tuning run.

    Adam's betas, epsilon and weight decay, the cosine schedule, the temperature, the number of
    epochs and the seed are those of the MXM-CLR paper's Tables 6 to 9, and a batch of 70
    instances is their (420, 350). The learning rates are not: the paper starts from CLIP, whose
    towers agree already, while the packaged encoders have never seen each other and their fresh
    projections start from noise. They are the best of those tried on the validation split of the
    emoji set, for both losses (examples/studies/compare/results/emoji_tuning.md).
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
    image_size: int = option(112, "side of the packaged image encoder's input in pixels")
    embed_dim: int = option(256, "width of the packaged encoders' shared space")

    loss: Literal["mfh", "clip"] = option("mfh", "MFH, or CLIP on one random pair per instance")
    hard_weight: float = option(0.6, "MFH: weight of the hard relationships")
    rounds: int = option(10, "MFH: rounds of random pair selection; 0 takes their expectation")
    teacher_decay: float = option(0.99, "MFH: decay of the teacher's moving average per step")
    temperature: float = option(0.03, "temperature at the start; it is learned")

    epochs: int = option(10, "passes over the training instances")
    batch_size: int = option(70, "instances per optimiser step, over all processes")
    micro_batch: int = option(
        0, "most images or captions that an encoder sees at once, by gradient caching; 0: all"
    )
    lr: float = option(1e-4, "rate of pretrained layers (the paper, from CLIP: 1e-5 or 1e-6)")
    head_lr: float = option(1e-3, "learning rate of fresh projections and the temperature")
    weight_decay: float = option(0.01, "weight decay of Adam")

    seed: int = option(2022, "seed of the initial projections, the batches and every draw")
    split_seed: int = option(0, "seed of the split into train, validation and test instances")
    eval_split: Literal["val", "test"] = option("test", "split that the metrics are computed on")
    limit: int = option(0, "keep at most this many instances of each split; 0: all")
    max_steps: int = option(0, "stop after this many optimiser steps; 0: all epochs")

    checkpoint_every: int = option(25, "steps between checkpoints")
    resume: bool = option(True, "go on from the newest checkpoint in output_dir, if there is one")
    precision: Literal["no", "bf16", "fp16"] = option("no", "mixed precision of Accelerate")
    cpu: bool = option(False, "stay on the CPU even where there is an accelerator")
    num_workers: int = option(0, "worker processes that load images")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "embed_dim", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("limit", "max_steps", "rounds", "num_workers", "micro_batch"):
            if getattr(self, name) < 0:
                raise OptionError(f"--{name} must not be negative, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise OptionError(f"--temperature must be positive, not {self.temperature}")
        if not 0 <= self.teacher_decay <= 1:
            raise OptionError(f"--teacher_decay must lie in [0, 1], not {self.teacher_decay}")
        if self.model == "packaged" and self.pretrained:
            raise OptionError("--pretrained goes with an open_clip --model")

    @property
    def output_path(self) -> Path:
        """Output folder."""
        return Path(self.output_dir)

    def numeric_options(self) -> dict[str, Any]:
        """Options that the numbers of a run depend on."""
        return {k: v for k, v in asdict(self).items() if k not in NEUTRAL_OPTIONS}
