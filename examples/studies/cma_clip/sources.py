"""Where the tokens of a batch come from: the encoders, or a cache while these are frozen."""

from typing import Protocol

import torch
from torch import Tensor

from examples.data.multifold import Observations, pad_texts

from .encoders import TokenEncoder
from .tokens import Tokens

CHUNK = 128


class TokenSource(Protocol):
    """Gives the tokens of pairs."""

    def tokens(self, images: Tensor, texts: Tensor) -> tuple[Tokens, Tokens]:
        """Tokens of some images, by rows (B,), and of some texts, by rows (B,)."""


class LiveTokens:
    """Runs the encoders, with gradients where they are asked for.

    Args:
        encoders: the model's.
        observations: inputs of the data set's images and texts.
        device: that the encoders are on.

    """

    def __init__(
        self, encoders: TokenEncoder, observations: Observations, device: torch.device | str = "cpu"
    ) -> None:
        self.encoders, self.observations, self.device = encoders, observations, device

    def tokens(self, images: Tensor, texts: Tensor) -> tuple[Tokens, Tokens]:
        """Encode the pairs."""
        return self.images(images.tolist()), self.texts(texts.tolist())

    def images(self, rows: list[int]) -> Tokens:
        """Encode images."""
        inputs = torch.stack([self.observations.images[row] for row in rows])
        return self.encoders.encode_images(inputs.to(self.device))

    def texts(self, rows: list[int]) -> Tokens:
        """Encode texts; what is padding in all of them goes."""
        padded, lengths = pad_texts([self.observations.texts[row] for row in rows])
        tokens = self.encoders.encode_texts(padded.to(self.device), lengths.to(self.device))
        return tokens[torch.arange(len(rows), device=self.device)]

    @torch.no_grad()
    def cache(self) -> "CachedTokens":
        """Encode everything once."""
        self.encoders.eval()
        images, texts = len(self.observations.images), len(self.observations.texts)
        return CachedTokens(
            Tokens.cat([self.images(rows) for rows in chunks(images)]),
            Tokens.cat([self.texts(rows) for rows in chunks(texts)]),
        )


class CachedTokens:
    """Tokens of all images and texts, of encoders that do not change."""

    def __init__(self, images: Tokens, texts: Tokens) -> None:
        self.images, self.texts = images, texts

    def tokens(self, images: Tensor, texts: Tensor) -> tuple[Tokens, Tokens]:
        """Look the pairs up."""
        device = self.images.mask.device
        return self.images[images.to(device)], self.texts[texts.to(device)]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything, for torch.save."""
        return {"images": vars(self.images), "texts": vars(self.texts)}

    @classmethod
    def load(cls, state: dict[str, dict[str, Tensor]]) -> "CachedTokens":
        """Make a cache of its state."""
        return cls(Tokens(**state["images"]), Tokens(**state["texts"]))


def chunks(count: int) -> list[list[int]]:
    """Rows 0 to count - 1 in pieces."""
    return [list(range(i, min(i + CHUNK, count))) for i in range(0, count, CHUNK)]
