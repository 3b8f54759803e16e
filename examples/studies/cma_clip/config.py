"""Options of a run: `Config` has the paper's sizes, `StudyConfig` those of the results."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from examples.errors import OptionError
from examples.finetune.config import Config as EncoderConfig
from examples.options import (
    Count,
    Fraction,
    OptionGroup,
    Penalty,
    Pixels,
    PositiveCount,
    Range,
    Seed,
    Width,
    option,
)

from .noise import Noise

PAPER_EPOCHS = (20, 20, 20)  # of the three stages, for three tasks
PAPER_LR = 1e-5
PAPER_WEIGHT_DECAY = 1e-4
# With another limit or seed the split is another one: the encoders would have seen its test emoji.
ALIGNMENT_OPTIONS = (
    "seed",
    "limit",
    "model",
    "pretrained",
    "image_size",
    "embed_dim",
    "alignment_epochs",
    "unfreeze",
)
SMALLEST, BELOW_ONE = math.nextafter(0, 1), math.nextafter(1, 0)
Layers = Annotated[int, Range(1, 1024)]
Rate = Annotated[float, Range(SMALLEST, 1, "be positive, and at most 1")]
Dropout = Annotated[float, Range(0, BELOW_ONE, "lie in [0, 1)")]
Precision = Annotated[float, Range(SMALLEST, 1, "lie in (0, 1]")]


@dataclass
class Config(OptionGroup):
    """Options of one run.

    The sizes, epochs, rates and weight decay are those of section 4.2 of arXiv 2112.03562; a batch
    of 512 instances with 2 pairs each is its 1024 pairs. The encoders are examples/encoders'.
    """

    model: str = option(
        "packaged", "'packaged' (MiniLM and EfficientNet-Lite0) or an open_clip model"
    )
    pretrained: str = option("", "open_clip weights: a tag of that model or a file; empty: random")
    unfreeze: Literal["top", "all"] = option("top", "what the end-to-end stage releases of them")
    image_size: Pixels = option(112, "side of the packaged image encoder's input in pixels")
    embed_dim: Width = option(512, "width of the packaged encoders' shared space")
    alignment_epochs: Count = option(
        3, "epochs of examples.finetune before the stages; 0: a CLIP that is trained already"
    )

    layers: Layers = option(12, "layers of the sequence-wise attention transformer")
    width: Width = option(512, "its width")
    heads: Layers = option(8, "its attention heads")
    dropout: Dropout = option(0.0, "dropout of the classifiers")
    sequence_attention: bool = option(True, "false: the encoders' class tokens as they are")
    modality_attention: bool = option(True, "false: image and text weigh 1/2 each")

    stage_epochs: list[Count] = field(
        default_factory=lambda: list(PAPER_EPOCHS),
        metadata={"help": "epochs of the warm-up, end-to-end and tuning stage"},
    )
    lr: Rate = option(PAPER_LR, "learning rate of what a stage trains")
    encoder_lr: Rate = option(PAPER_LR, "that of the encoders in the end-to-end stage")
    weight_decay: Penalty = option(PAPER_WEIGHT_DECAY, "weight decay of Adam")
    batch_size: PositiveCount = option(512, "instances in a batch")
    pairs_per_instance: PositiveCount = option(2, "random pairs of every instance of a batch")
    contrastive_weight: Penalty = option(
        0.5, "weight of the multifold contrastive loss in the end-to-end stage; 0: the paper's"
    )

    noise: Literal["none", "image", "text"] = option("none", "modality with noise")
    noise_rate: Fraction = option(0.5, "share of that modality's observations that are noise")
    precision: Precision = option(0.9, "precision that the recall is given at")
    min_instances: PositiveCount = option(10, "emoji that a subcategory needs to be a class")
    limit: Count = option(0, "use at most this many emoji; 0: all")

    seed: Seed = option(2022, "seed of initial weights, batches, noise, and of the split")
    output_dir: str = option("runs/cma_clip", "folder of checkpoints and results")
    cpu: bool = option(False, "stay on the CPU even where there is an accelerator")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise OptionError(f"--heads must divide --width {self.width}, not {self.heads}")
        if len(self.stage_epochs) != 3 or min(self.stage_epochs) < 0 or not any(self.stage_epochs):
            raise OptionError(
                f"--stage_epochs takes three numbers, not all 0, not {self.stage_epochs}"
            )

    @property
    def output_path(self) -> Path:
        """Output folder."""
        return Path(self.output_dir)

    def noise_of(self) -> Noise | None:
        """The noise of a run."""
        return None if self.noise == "none" else Noise(self.noise, self.noise_rate, self.seed)

    def encoder_config(self) -> EncoderConfig:
        """Options of examples.finetune, which builds and aligns the encoders."""
        return EncoderConfig(
            model=self.model,
            pretrained=self.pretrained,
            unfreeze=self.unfreeze,
            image_size=self.image_size,
            embed_dim=self.embed_dim,
            epochs=max(self.alignment_epochs, 1),
            batch_size=min(70, self.limit or 70),
            seed=self.seed,
            eval_split="val",
            output_dir=str(self.output_path / f"alignment_{self.seed}"),
            checkpoint_every=1000,
            cpu=self.cpu,
        )

    def alignment_options(self) -> dict[str, Any]:
        """Options that the aligned encoders depend on, those of the training split included."""
        return {name: getattr(self, name) for name in ALIGNMENT_OPTIONS}

    def numeric_options(self) -> dict[str, Any]:
        """Options that the numbers depend on."""
        return {k: v for k, v in asdict(self).items() if k != "output_dir"}


@dataclass
class StudyConfig(Config):
    """Options of the study: a smaller transformer and larger rates, for an hour on two cores."""

    embed_dim: Width = option(128, "width of the packaged encoders' shared space")
    layers: Layers = option(2, "layers of the sequence-wise attention transformer")
    width: Width = option(128, "its width")
    heads: Layers = option(4, "its attention heads")
    dropout: Dropout = option(0.1, "dropout of the classifiers")
    stage_epochs: list[Count] = field(
        default_factory=lambda: [40, 6, 2],
        metadata={"help": "epochs of the warm-up, end-to-end and tuning stage"},
    )
    lr: Rate = option(1e-3, "learning rate of what a stage trains")
    encoder_lr: Rate = option(1e-4, "that of the encoders in the end-to-end stage")
    batch_size: PositiveCount = option(32, "instances in a batch")
    noise: Literal["none", "image", "text"] = option("text", "modality of the noisy condition")
    output_dir: str = option("runs/cma_study", "folder of checkpoints and unfinished results")
    cpu: bool = option(True, "stay on the CPU even where there is an accelerator")
