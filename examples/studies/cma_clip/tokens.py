"""What an encoder says of a batch of images or texts: a class token, a sequence, and features."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass
class Tokens:
    """B images or texts as token sequences.

    `class_token` (B, C) stands for the whole; `sequence` (B, S, C) are the patches, or the words
    without the class token; `mask` (B, S) is False where the sequence is padding; `features`
    (B, D) are the normalised features that the contrastive loss compares.
    """

    class_token: Tensor
    sequence: Tensor
    mask: Tensor
    features: Tensor

    def with_class(self) -> Tensor:
        """The class token in front of the sequence, (B, 1 + S, C)."""
        return torch.cat([rearrange(self.class_token, "b c -> b 1 c"), self.sequence], dim=1)

    def __len__(self) -> int:
        return len(self.class_token)

    def __getitem__(self, rows: Tensor) -> Tokens:
        """Tokens of some rows, without the positions that are padding in all of them."""
        mask = self.mask[rows]
        used = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
        sequence = self.sequence[rows, :used]
        return Tokens(self.class_token[rows], sequence, mask[:, :used], self.features[rows])

    def to(self, device: torch.device | str) -> Tokens:
        """Move to a device."""
        return Tokens(**tree_map(lambda values: values.to(device), vars(self)))

    @classmethod
    def cat(cls, parts: list[Tokens]) -> Tokens:
        """Concatenate batches; shorter sequences are padded."""
        length = max(part.sequence.shape[1] for part in parts)
        padded = [part.padded(length) for part in parts]
        return cls(*(torch.cat([getattr(p, f.name) for p in padded]) for f in fields(cls)))

    def padded(self, length: int) -> Tokens:
        """Pad the sequences to a length."""
        missing = length - self.sequence.shape[1]
        sequence = torch.nn.functional.pad(self.sequence, (0, 0, 0, missing))
        mask = torch.nn.functional.pad(self.mask, (0, missing))
        return Tokens(self.class_token, sequence, mask, self.features)
