"""The tensors of a case, the same for every provider."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.cases import TEMPERATURE, Case

Selection = tuple[Tensor, Tensor]  # (rounds, M) texts and (rounds, N) images


@dataclass
class Batch:
    """Features, scale and instances of a case; student features and scale are leaves."""

    case: Case
    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    scale: Tensor  # ()
    teacher_x: Tensor | None
    teacher_y: Tensor | None
    image_ids: Tensor  # (M,)
    text_ids: Tensor  # (N,)

    @classmethod
    def make(cls, case: Case, device: torch.device) -> Batch:
        """Random features of instances: rows of one instance lie near each other, as trained."""
        generator = torch.Generator(device).manual_seed(0)

        def noise(rows: int) -> Tensor:
            return torch.randn(rows, case.D, generator=generator, device=device)

        instances = case.M // case.views
        image_ids = torch.arange(case.M, device=device) // case.views
        text_ids = torch.arange(case.N, device=device) // case.captions
        centre = noise(instances)

        def features(ids: Tensor) -> Tensor:
            return normalize(centre[ids] + 2 * noise(len(ids)), dim=1).to(case.torch_dtype)

        x, y = features(image_ids), features(text_ids)
        teacher_x = features(image_ids) if case.teacher else None
        teacher_y = features(text_ids) if case.teacher else None
        scale = torch.tensor(1 / TEMPERATURE, device=device, requires_grad=True)
        x, y = x.requires_grad_(), y.requires_grad_()
        return cls(case, x, y, scale, teacher_x, teacher_y, image_ids, text_ids)

    def with_leaves(self, dtype: torch.dtype | None = None) -> Batch:
        """The same numbers in leaves of their own, so that providers share no gradient."""

        def leaf(tensor: Tensor, to: torch.dtype) -> Tensor:
            return tensor.detach().to(to).requires_grad_()

        features = dtype or self.x.dtype
        return Batch(
            self.case,
            leaf(self.x, features),
            leaf(self.y, features),
            leaf(self.scale, dtype or self.scale.dtype),
            None if self.teacher_x is None else self.teacher_x.to(features),
            None if self.teacher_y is None else self.teacher_y.to(features),
            self.image_ids,
            self.text_ids,
        )

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What is differentiated, by name."""
        return {"image": self.x, "text": self.y, "scale": self.scale}

    def clear(self) -> None:
        """Forget the gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def draw(self) -> Selection:
        """Masked random pair selection, in the cheapest way that uniform instances allow."""
        case, device = self.case, self.x.device
        if case.rounds is None:
            return self.every_positive()
        to_text = torch.randint(case.captions, (case.rounds, case.M), device=device)
        to_image = torch.randint(case.views, (case.rounds, case.N), device=device)
        return to_text + self.image_ids * case.captions, to_image + self.text_ids * case.views

    def every_positive(self) -> Selection:
        """Each positive of a row in turn: the rounds whose mean is the exact expectation."""
        case, device = self.case, self.x.device
        texts = torch.arange(case.captions, device=device)[:, None]
        images = torch.arange(case.views, device=device)[:, None]
        return texts + self.image_ids * case.captions, images + self.text_ids * case.views
