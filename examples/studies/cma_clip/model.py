"""CMA-CLIP, arXiv 2112.03562: encoders, two attentions, and a classifier for every task.

The symbols are the paper's: I', T' for the class tokens after sequence-wise attention, lambda for
the weight of the image. The four parts are named as the training stages name them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import ClassTokens, EqualWeights, KeylessAttention, SequenceAttention
from .encoders import TokenEncoder
from .tokens import Tokens

PARTS = ("encoders", "sequence", "modality", "heads")


@dataclass
class Prediction:
    """Of B pairs and every task: `logits` (B, classes) and `image_weight` lambda (B,)."""

    logits: dict[str, Tensor]
    image_weight: dict[str, Tensor]


class CMAClip(nn.Module):
    """Classifies image-text pairs for several tasks at once.

    Args:
        encoders: make the token sequences of images and texts.
        classes: number of classes of every task, by its name.
        layers: of the sequence-wise attention transformer.
        width: of that transformer.
        heads: of that transformer.
        dropout: in front of the classifiers' last layer; the transformer, like CLIP's, has none.
        sequence_attention: False takes the encoders' class tokens as they are (Table 6, w/o SA).
        modality_attention: False weighs image and text equally (Table 6, w/o MA).
        seed: of the initial weights; each part has its own stream, so that a part starts alike
            whatever the others are.

    """

    def __init__(
        self,
        encoders: TokenEncoder,
        classes: dict[str, int],
        layers: int = 12,
        width: int = 512,
        heads: int = 8,
        dropout: float = 0.0,
        sequence_attention: bool = True,
        modality_attention: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 2:
            raise ValueError(f"classes must name tasks of two classes or more, got {classes}")
        self.encoders = encoders
        sizes = encoders.image_width, encoders.text_width
        torch.manual_seed(3 * seed)
        self.sequence: nn.Module = (
            SequenceAttention(*sizes, layers, width, heads)
            if sequence_attention
            else ClassTokens(*sizes, width)
        )
        torch.manual_seed(3 * seed + 1)
        self.modality = nn.ModuleDict(
            {
                task: KeylessAttention(width) if modality_attention else EqualWeights()
                for task in classes
            }
        )
        torch.manual_seed(3 * seed + 2)
        self.heads = nn.ModuleDict(
            {task: classifier(width, count, dropout) for task, count in classes.items()}
        )

    def forward(self, image: Tokens, text: Tokens) -> Prediction:
        """Predict from the tokens of B images and of their B texts."""
        image_class, text_class = self.sequence(image, text)
        prediction = Prediction({}, {})
        for task, head in self.heads.items():
            fused, weight = self.modality[task](image_class, text_class)
            prediction.logits[task] = head(fused)
            prediction.image_weight[task] = weight
        return prediction


def classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    """MLP head with one hidden layer (section 3.2.3 leaves its size open)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, classes)
    )
