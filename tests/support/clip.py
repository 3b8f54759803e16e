"""A CLIPModel of transformers that needs no download, and instances for it."""

import torch
from transformers import CLIPConfig, CLIPModel

from mxm_kernels.data import MultifoldItem


def small_clip():
    """The same weights every time."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 24, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=tiny, vision_config=tiny))


def instances(count):
    """Instances 0 to ``count`` with 2 views and 3 captions each; the first are always the same."""
    draw = torch.Generator().manual_seed(3)
    return [
        MultifoldItem(
            i,
            torch.randn(2, 3, 16, 16, generator=draw),
            torch.randint(999, (3, 8), generator=draw),
        )
        for i in range(count)
    ]
