"""The two attentions of CMA-CLIP, sections 3.2.1 and 3.2.2 of arXiv 2112.03562.

Sequence-wise: a transformer over [image class, patches, text class, tokens], so that every patch
sees every token. Modality-wise: the weight lambda of the image against the text, one per task.
"""

from typing import cast

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn.functional import linear

from .tokens import Tokens

SEGMENTS = 4  # image class, patches, text class, tokens


class SequenceAttention(nn.Module):
    """Transformer encoder over the patches and tokens of image-text pairs.

    Patches and tokens arrive with the positions that their encoders gave them; what they lack is
    a mark of what they are, which is the segment embedding. Encoders whose width is not the
    transformer's are projected to it.

    Args:
        image_width: width of the image tokens.
        text_width: width of the text tokens.
        layers: 12 in the paper.
        width: 512 in the paper, the width of CLIP's joint space.
        heads: 8 in the paper; must divide `width`.

    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        layers: int = 12,
        width: int = 512,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width={width}, got {heads}")
        self.input = TokenInput(image_width, text_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        """I'[CLS] (B, width) and T'[CLS] (B, width), from the tokens of B pairs."""
        hidden, padding = self.input(image, text)
        *whole, last = self.layers
        for layer in whole:
            hidden = layer(hidden, src_key_padding_mask=padding)
        places = [0, 1 + image.sequence.shape[1]]
        last = cast(nn.TransformerEncoderLayer, last)
        image_class, text_class = self.norm(at_places(last, hidden, padding, places)).unbind(1)
        return image_class, text_class

    @torch.no_grad()
    def relevance(self, image: Tokens, text: Tokens, layer: int) -> Tensor:
        """Inner product of each token's query with each patch's key, (B, L, P): Figure 2.

        The queries and keys are those of `layer`, of all its heads together, scaled as in the
        softmax. Padded tokens have meaningless rows.
        """
        if not -len(self.layers) <= layer < len(self.layers):
            raise ValueError(f"layer must be one of {len(self.layers)} layers, got {layer}")
        hidden, padding = self.input(image, text)
        for block in self.layers[: layer % len(self.layers)]:
            hidden = block(hidden, src_key_padding_mask=padding)
        block = cast(nn.TransformerEncoderLayer, self.layers[layer])
        weight, bias = block.self_attn.in_proj_weight, block.self_attn.in_proj_bias
        query, key, _ = linear(block.norm1(hidden), weight, bias).chunk(3, dim=-1)
        patches = image.sequence.shape[1]
        query, key = query[:, 2 + patches :], key[:, 1 : 1 + patches]
        scores = einsum(query, key, "b l c, b p c -> b l p")
        return scores / block.self_attn.head_dim**0.5


def at_places(
    layer: nn.TransformerEncoderLayer, hidden: Tensor, padding: Tensor, places: list[int]
) -> Tensor:
    """What a pre-norm layer without dropout makes of hidden[:, places], (B, places, width).

    Nobody reads the last layer's other outputs (hidden is (B, S, width)), so its queries and its
    feed-forward network run for these places alone.
    """
    keys = layer.norm1(hidden)
    attended, _ = layer.self_attn(
        keys[:, places], keys, keys, key_padding_mask=padding, need_weights=False
    )
    chosen = hidden[:, places] + attended
    return chosen + layer.linear2(layer.activation(layer.linear1(layer.norm2(chosen))))


class TokenInput(nn.Module):
    """The pair's tokens as one sequence (B, 2 + P + L, width), and which of them are padding."""

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = projection(image_width, width)
        self.text = projection(text_width, width)
        self.segment = nn.Parameter(0.02 * torch.randn(SEGMENTS, width))

    def forward(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        """Concatenate."""
        x, y = self.image(image.with_class()), self.text(text.with_class())
        lengths = torch.tensor([1, x.shape[1] - 1, 1, y.shape[1] - 1], device=x.device)
        segments = self.segment.repeat_interleave(lengths, dim=0)
        class_token = image.mask.new_zeros(len(x), 1)
        padding = torch.cat([class_token, ~image.mask, class_token, ~text.mask], dim=1)
        return torch.cat([x, y], dim=1) + segments, padding


class ClassTokens(nn.Module):
    """In place of sequence-wise attention: the encoders' own class tokens, I[CLS] and T[CLS]."""

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = projection(image_width, width)
        self.text = projection(text_width, width)

    def forward(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        """I[CLS] (B, width) and T[CLS] (B, width)."""
        return self.image(image.class_token), self.text(text.class_token)


def projection(source: int, width: int) -> nn.Module:
    """Bring tokens to the transformer's width and scale."""
    norm = nn.LayerNorm(width)
    return norm if source == width else nn.Sequential(nn.Linear(source, width), norm)


class KeylessAttention(nn.Module):
    """Modality-wise attention of one task, equations 3 to 6.

        e_I = w^T I',  e_T = w^T T',  lambda = exp(e_I) / (exp(e_I) + exp(e_T)),
        c = lambda I' + (1 - lambda) T'

    Keyless: there is no query to compare with, only the learned vector w. Two tasks take 0.5 ms,
    forward and backward, of a training step of 90 ms (64 pairs, the study's sizes, one thread of
    an EPYC), and of 6 s at the paper's: a fused version could not be noticed.

    Args:
        width: of I' and T'.

    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Linear(width, 1, bias=False)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse I' (B, width) and T' (B, width) to c (B, width); lambda (B,) comes second."""
        weight = (self.w(image) - self.w(text)).sigmoid()
        return torch.lerp(text, image, weight), weight[:, 0]


class EqualWeights(nn.Module):
    """In place of modality-wise attention: lambda = 1/2 for every pair."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, width) of I' and T', and lambda (B,)."""
        return (image + text) / 2, image.new_full((len(image),), 0.5)
